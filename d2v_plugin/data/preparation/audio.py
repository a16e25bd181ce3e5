"""Audio: what a recording is, and whether all of it can be read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import soundfile
from typing_extensions import Unpack

from d2v_plugin.data.audio import AudioReadingConfig, Recording, measure, read_info, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.files import FileOptions, Inspected, prepare_files
from d2v_plugin.data.preparation.finding import FoundFile, find_files
from d2v_plugin.data.transcripts import find_reserved

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"})
RECEPTIVE_FIELD = 400
"""Samples that the usual convolutions (wav2vec 2.0, data2vec) need for one frame."""
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
    min_samples: int = RECEPTIVE_FIELD,
    **options: Unpack[FileOptions],
) -> Report:
    """Write an audio dataset.

    :param transcripts: a file of lines ``path<TAB>transcript``; excludes ``labels``.
    :param sample_rate: the rate that need not be mentioned.
    :param segment_seconds: cut longer recordings into equal segments of at most this; None = do not.
    :param fairseq: write path and number of samples only.
    :param min_samples: the shortest recording, or segment of one, that a model can hear, counted at ``sample_rate``.
    """
    report = Report()

    def inspect(source: FoundFile) -> Inspected:
        try:
            return inspect_readable(source)
        except soundfile.LibsndfileError as error:
            raise SampleError(f"The recording cannot be read: {error.error_string}") from None

    def inspect_readable(source: FoundFile) -> Inspected:
        info = read_info(source.location)
        if not info.frames:
            raise SampleError("The recording has no samples.")
        longest = info.frames if segment_seconds is None else max(1, int(segment_seconds * info.samplerate))
        count = -(-info.frames // longest)
        bounds = [info.frames * index // count for index in range(count + 1)]
        rows = []
        for start, end in pairwise(bounds):
            if (end - start) * sample_rate < min_samples * info.samplerate:
                raise SampleError(f"The recording is too short: {min_samples} samples at {sample_rate} Hz make the first frame.")
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

    name = "label" if transcripts is None else "transcript"
    sources = find_files(roots, SUFFIXES, labels or transcripts, report, label_name=name)
    if transcripts is not None:
        sources = [source for source in sources if not _drop_reserved(source, report)]
    prepare_files(
        sources,
        out,
        inspect,
        report,
        settings={
            "kind": "audio",
            "sample_rate": sample_rate,
            "segment_seconds": segment_seconds,
            "fairseq": fairseq,
            "min_samples": min_samples,
        },
        columns=_COLUMNS,
        declare_classes=transcripts is None,
        **options,
    )

    return report


def _drop_reserved(source: FoundFile, report: Report) -> bool:
    if fault := find_reserved(source.label or ""):
        report.drop(source.name, fault)
    return bool(fault)


def _inspect_segment(source: FoundFile, start: int, end: int, rate: int, *, whole: bool) -> dict[str, object]:
    """Read it as training would, which finds damage and gives the statistics."""
    recording = Recording(source.location, end - start, start, is_segment=not whole, rate=rate)
    mean, variance = measure(read_recording(recording, AudioReadingConfig(sample_rate=rate, normalize=False)))
    return {
        "size": end - start,
        "start": None if whole else start,
        "rate": rate,
        "mean": f"{mean:.9g}",
        "variance": f"{variance:.9g}",
    }
