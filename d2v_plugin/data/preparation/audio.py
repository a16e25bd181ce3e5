"""Audio: what a recording is, and whether all of it can be read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import soundfile
from typing_extensions import Unpack

from d2v_plugin.data.audio import AudioReadingConfig, Recording, measure, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.files import Location
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.files import FileOptions, FoundFile, Inspected, find_files, prepare_files

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"})
_COLUMNS = ("path", "size", "label", "start", "rate", "mean", "variance")


def prepare_audio(
    roots: Sequence[Path],
    out: Path,
    *,
    labels: str | None,
    transcripts: str | None = None,
    sample_rate: int,
    segment_seconds: float | None,
    fairseq: bool,
    **options: Unpack[FileOptions],
) -> Report:
    """Write an audio dataset.

    :param transcripts: a file of lines ``path<TAB>transcript``; excludes ``labels``.
    :param sample_rate: the rate that need not be mentioned.
    :param segment_seconds: cut longer recordings into equal segments of at most this; None = do not.
    :param fairseq: write path and number of samples only.
    """
    report = Report()

    def inspect(source: FoundFile) -> Inspected:
        info = soundfile.info(str(source.path))
        if not info.frames:
            raise SampleError("The recording is empty.")
        longest = info.frames if segment_seconds is None else max(1, int(segment_seconds * info.samplerate))
        count = -(-info.frames // longest)
        bounds = [info.frames * index // count for index in range(count + 1)]
        rows = []
        for start, end in pairwise(bounds):
            rows.append(_inspect_segment(source, start, end, info.samplerate, whole=count == 1))
            if info.samplerate == sample_rate:
                del rows[-1]["rate"]
            if fairseq:
                rows[-1] = {"size": rows[-1]["size"]}

        return Inspected(
            rows,
            facts={"rates": info.samplerate, "channels": info.channels, "formats": f"{info.format} {info.subtype}"},
            totals={"hours": info.frames / info.samplerate / 3600},
        )

    sources = find_files(roots, SUFFIXES, labels or transcripts, report)
    prepare_files(
        sources,
        out,
        inspect,
        report,
        settings={"kind": "audio", "sample_rate": sample_rate, "segment_seconds": segment_seconds, "fairseq": fairseq},
        columns=_COLUMNS,
        declare_classes=transcripts is None,
        **options,
    )

    return report


def _inspect_segment(source: FoundFile, start: int, end: int, rate: int, *, whole: bool) -> dict[str, object]:
    """Read it as training would, which finds damage and gives the statistics."""
    recording = Recording(Location(str(source.path)), end - start, start, is_segment=not whole, rate=rate)
    mean, variance = measure(read_recording(recording, AudioReadingConfig(sample_rate=rate, normalize=False)))
    return {
        "size": end - start,
        "start": None if whole else start,
        "rate": rate,
        "mean": f"{mean:.9g}",
        "variance": f"{variance:.9g}",
    }
