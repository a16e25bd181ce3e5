"""Audio: what a recording is, and whether all of it can be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import soundfile
from typing_extensions import Unpack

from d2v_plugin.data import ffmpeg
from d2v_plugin.data.audio import AudioReadingConfig, Recording, measure, read_info, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.dataset import AudioManifest
from d2v_plugin.data.log_mel import LogMelConfig
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.preparation.common import TRAIN, Report
from d2v_plugin.data.preparation.files import FileOptions, Inspected, prepare_files
from d2v_plugin.data.preparation.finding import FoundFile, find_files
from d2v_plugin.data.preparation.spectrograms import measure_log_mel
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.transcripts import find_reserved

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".npy"}) | ffmpeg.SUFFIXES
RECEPTIVE_FIELD = 400
"""Samples that the usual convolutions (wav2vec 2.0, data2vec) need for one frame."""
MAX_OVERSHOOT = 0.5
"""Seconds that a segment may end behind its recording, which is Kaldi's limit."""
_CLOSE = 0.01
_CUT_OFF = "segments cut off at the end of their recording"
_COLUMNS = ("path", "size", "label", "start", "rate", "mean", "variance", "speaker")


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
    num_mels: int = LogMelConfig.num_mels,
    **options: Unpack[FileOptions],
) -> Report:
    """Write an audio dataset; the report has mean and deviation of the log-mel spectrograms of ``train``.

    :param transcripts: a file of lines ``path<TAB>transcript``; excludes ``labels``.
    :param sample_rate: the rate that need not be mentioned.
    :param segment_seconds: cut longer recordings into equal segments of at most this; None = do not.
    :param fairseq: write path and number of samples only.
    :param min_samples: the shortest recording, or segment of one, that a model can hear, counted at ``sample_rate``.
    :param num_mels: bands of the spectrograms.
    """
    report = Report()
    name = "label" if transcripts is None else "transcript"
    sources = find_files(roots, SUFFIXES, labels or transcripts, report, label_name=name)
    if not all(map(_is_array, sources)):
        # What lies beside recordings was made of them, or is something else.
        sources = [source for source in sources if not _drop_array(source, report)]

    return prepare_recordings(
        sources,
        out,
        report,
        has_transcripts=transcripts is not None,
        sample_rate=sample_rate,
        segment_seconds=segment_seconds,
        fairseq=fairseq,
        min_samples=min_samples,
        num_mels=num_mels,
        **options,
    )


def prepare_recordings(
    sources: Sequence[FoundFile],
    out: Path,
    report: Report,
    *,
    has_transcripts: bool,
    sample_rate: int,
    segment_seconds: float | None = None,
    fairseq: bool = False,
    min_samples: int = RECEPTIVE_FIELD,
    num_mels: int = LogMelConfig.num_mels,
    **options: Unpack[FileOptions],
) -> Report:
    """Write an audio dataset of recordings that were found; see :func:`prepare_audio`.

    :param has_transcripts: labels are what is said, not classes.
    """

    def inspect(source: FoundFile) -> Inspected:
        try:
            return inspect_readable(source)
        except soundfile.LibsndfileError as error:
            raise SampleError(f"The recording cannot be read: {error.error_string}") from None

    def inspect_readable(source: FoundFile) -> Inspected:
        # As an archive holds it, it has no name.
        is_packed = options["shard_size"] is not None or source.bytes is not None
        if is_packed and source.called.lower().endswith(ffmpeg.NAMELESS):
            raise SampleError("The name alone tells the format, and archives do not keep it: read it as a file, or convert it.")
        info = read_info(source.location)
        if not info.frames:
            raise SampleError("The recording has no samples.")
        rate = info.samplerate or sample_rate
        first, last = find_bounds(source.segment, info.frames, rate)
        start, seconds = source.segment or (0.0, None)
        cut_off = {_CUT_OFF: 1} if start + (seconds or 0.0) > info.frames / rate + _CLOSE else {}
        longest = last - first if segment_seconds is None else max(1, int(segment_seconds * rate))
        count = -(-(last - first) // longest)
        bounds = [first + (last - first) * index // count for index in range(count + 1)]
        rows = []
        for begin, end in pairwise(bounds):
            if (end - begin) * sample_rate < min_samples * rate:
                raise SampleError(f"The recording is too short: {min_samples} samples at {sample_rate} Hz make the first frame.")
            rows.append(_inspect_segment(source, begin, end, rate, whole=end - begin == info.frames))
            if rate == sample_rate:
                del rows[-1]["rate"]
            if fairseq:
                rows[-1] = {"size": rows[-1]["size"]}

        return Inspected(
            rows,
            facts={"rates": rate, "channels": info.channels, "formats": info.format},
            totals={"hours": (last - first) / rate / 3600, **cut_off},
        )

    if has_transcripts:
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
        declare_classes=not has_transcripts,
        **options,
    )
    if TRAIN in report.splits:
        manifest = Manifest(out / f"{TRAIN}.tsv", AudioManifest.columns, Problems())
        found = measure_log_mel(manifest, LogMelConfig(sample_rate=sample_rate, num_mels=num_mels))
        report.facts |= {} if found is None else {"log_mel": found}
        report.save(out)

    return report


def find_bounds(segment: tuple[float, float | None] | None, frames: int, rate: int) -> tuple[int, int]:
    """The first sample of a segment and the one behind its last, each rounded to the nearest, as Lhotse does.

    Other toolkits write times with few digits: what begins with the recording and ends within 10 ms of its end is all of it. What
    ends up to half a second behind the end is cut off there, as Kaldi does.

    :param segment: start and length in seconds; None = the whole recording.
    :raises SampleError: it does not lie within the recording.
    """
    if segment is None:
        return 0, frames
    start, seconds = segment
    first = _round_half_up(start * rate)
    last = frames if seconds is None else first + _round_half_up(seconds * rate)
    if not 0 <= first < min(last, frames) or last > frames + rate * MAX_OVERSHOOT:
        raise SampleError(f"The segment does not lie within the recording: samples {first} to {last} of {frames}.")
    is_whole = first == 0 and last > frames - rate * _CLOSE
    return first, frames if is_whole else min(last, frames)


def _round_half_up(value: float) -> int:
    return math.floor(round(value, 8) + 0.5)


def _is_array(source: FoundFile) -> bool:
    return source.called.lower().endswith(".npy")


def _drop_array(source: FoundFile, report: Report) -> bool:
    if is_array := _is_array(source):
        report.drop(source.called, "it is an array beside recordings: make manifests of arrays apart")
    return is_array


def _drop_reserved(source: FoundFile, report: Report) -> bool:
    if fault := find_reserved(source.label or ""):
        report.drop(source.called, fault)
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
