"""Looking at a manifest: totals, a histogram and a few rows."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError
from numpy.typing import NDArray

from d2v_plugin.data.audio import AudioReadingConfig, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestDataset, TextManifest, check_vocabulary
from d2v_plugin.data.image import decode
from d2v_plugin.data.log_mel import LogMelConfig, log_mel
from d2v_plugin.data.manifest import Manifest, check_finished
from d2v_plugin.data.manifest_text import decode as decode_text
from d2v_plugin.data.preparation.audio import SUFFIXES as AUDIO_SUFFIXES
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.recordings import recording_of
from d2v_plugin.data.text import SENTENCEPIECE_FILE, VOCABULARY_FILE, Tokenizer, TokenStream, Vocabulary

_NUM_ROWS = 5
_NUM_BINS = 10
_NUM_DECODED = 1000
_NUM_HEARD = 100
_BAR = 40


def inspect_manifest(path: Path, *, with_log_mel: bool = False) -> str:
    """Describe a manifest.

    :param path: a ``.tsv`` file.
    :param with_log_mel: also read recordings, for the mean and deviation of their log-mel values.
    :raises RecipeError: it does not exist or is wrong, or has no recordings to read.
    """
    if not path.is_file():
        raise RecipeError(f"{path} is no manifest; name a file such as train.tsv.")
    check_finished(path.parent)
    family = _guess_family(path)
    problems = Problems()
    manifest = Manifest(path, family.columns, problems)
    problems.raise_if_any()
    lines = [f"{path}: {len(manifest):,} rows ({family.__name__})", f"roots: {', '.join(manifest.roots)}"]
    if labels := manifest.distinct("label"):
        lines.append(f"labels: {len(labels):,} different ({', '.join(labels[:10])}{', …' if len(labels) > 10 else ''})")
    if with_log_mel and family is not AudioManifest:
        raise RecipeError(f"{path} lists no recordings, whose log-mel values could be read.")
    if family is AudioManifest:
        lines += _describe_audio(manifest)
        lines += _describe_spectrograms(manifest) if with_log_mel else []
    elif family is TextManifest:
        lines += _describe_text(manifest)
    else:
        lines += _describe_images(manifest)
    lines.append("rows:")
    for row in range(min(_NUM_ROWS, len(manifest))):
        fields = [f"{name}={manifest.text(name, row)}" for name in family.columns.names[1:] if manifest.text(name, row)]
        lines.append(f"  {manifest.location(row)}  {' '.join(fields)}".rstrip())

    return "\n".join(lines)


def _guess_family(path: Path) -> type[ManifestDataset]:
    """Text has a vocabulary beside it; a second column of numbers, or the file name of a recording, is audio."""
    if (path.parent / VOCABULARY_FILE).is_file():
        return TextManifest
    with path.open("rb") as file:
        for line in [decode_text(line.rstrip(b"\r\n")).split("\t") for line in islice(file, 1, 4)]:
            if line[0] == "#columns":
                return AudioManifest if "size" in line else ImageManifest
            if Path(line[0]).suffix.lower() in AUDIO_SUFFIXES:
                return AudioManifest
            if not line[0].startswith("#"):
                return AudioManifest if len(line) == 3 else ImageManifest

    return ImageManifest


def _describe_audio(manifest: Manifest) -> list[str]:
    rates = manifest.integers("rate")
    seconds = manifest.integers("size") / np.where(rates > 0, rates, 16_000)
    return [f"total: {seconds.sum() / 3600:,.2f} hours", *_draw_histogram(seconds, "seconds")]


def _describe_spectrograms(manifest: Manifest) -> list[str]:
    """Mean and deviation of log-mel values at 16 kHz, of a hundred recordings at most, evenly spread, that can be read."""
    config, moments, count = LogMelConfig(), torch.zeros(3, dtype=torch.float64), 0
    reading = AudioReadingConfig(sample_rate=config.sample_rate, resample=True, normalize=False)
    rows = np.unique(np.linspace(0, len(manifest) - 1, min(len(manifest), _NUM_HEARD)).astype(np.int64))
    for row in rows:
        try:
            waveform = torch.from_numpy(read_recording(recording_of(manifest, int(row)), reading))
            values = log_mel(waveform.unsqueeze(0), config).double()
        except (SampleError, OSError, RuntimeError, ValueError):
            continue
        count += 1
        moments += torch.stack([torch.tensor(values.numel()), values.sum(), values.square().sum()])
    if not count:
        raise RecipeError(f"{manifest.path}: none of {len(rows):,} recordings can be read; their log-mel values are not known.")
    number, total, squares = moments.tolist()
    mean = total / number
    return [f"log-mel spectrograms of {count:,} recordings: mean {mean:.4g}, std {math.sqrt(squares / number - mean**2):.4g}"]


def _describe_text(manifest: Manifest) -> list[str]:
    vocabulary = Vocabulary.load(manifest.path.parent)
    check_vocabulary(manifest, vocabulary)
    stream = TokenStream(manifest, vocabulary)
    sample = Tokenizer(manifest.path.parent / SENTENCEPIECE_FILE).decode(stream.read(0, min(60, len(stream))).tolist())
    return [
        f"total: {len(stream):,} tokens of a vocabulary of {vocabulary.size:,}",
        f"begins: {sample}",
        *_draw_histogram(manifest.integers("tokens").astype(np.float64), "tokens per row"),
    ]


def _describe_images(manifest: Manifest) -> list[str]:
    """Sizes of images are in their files: of a large manifest a thousand are looked at, evenly spread."""
    rows = np.unique(np.linspace(0, len(manifest) - 1, min(len(manifest), _NUM_DECODED)).astype(np.int64))
    sides = [min(decode(manifest.location(int(row))).shape[-2:]) for row in rows]
    return [f"sizes of {len(rows):,} images:", *_draw_histogram(np.array(sides, dtype=np.float64), "pixels, shorter side")]


def _draw_histogram(values: NDArray[np.float64], unit: str) -> list[str]:
    counts, edges = np.histogram(values, bins=_NUM_BINS)
    lines = [f"{unit}: {values.min():,.4g} to {values.max():,.4g}, mean {values.mean():,.4g}"]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "█" * round(_BAR * count / counts.max())
        lines.append(f"  {low:>12,.4g} … {high:<12,.4g} {count:>10,} {bar}".rstrip())
    return lines
