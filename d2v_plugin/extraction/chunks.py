"""Long recordings: the memory that they need, and their features in overlapping chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.order import Rows
from d2v_plugin.layers.attention import LONG
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.models.pooling import split_samples
from d2v_plugin.models.spectrograms import sees_spectrograms

SAMPLE_RATE: Final = 16_000
"""Of models of speech; a task may say another one."""

OVERLAP: Final = 1 / 8
"""Share of a chunk, at each of its ends, that is computed for the sake of the rest and then dropped."""


def count_samples(chunk_seconds: float | None, sample_rate: int) -> int | None:
    """Samples of a chunk; None = recordings are computed whole."""
    return None if chunk_seconds is None else int(chunk_seconds * sample_rate)


def find_long(batch: Batch, num_samples: int) -> Sequence[Tensor]:
    """The recordings of a batch one by one, N × (T_n,) or (T_n, C), if one has more samples than a chunk; empty = none has."""
    if batch.modality is not Modality.AUDIO or batch.inputs.size(1) <= num_samples:
        return ()
    return split_samples(batch.inputs, batch.padding_mask)


def iterate_chunks(model: EncoderModel, waveform: Tensor, num_samples: int) -> Iterator[Features]:
    """The features of a recording chunk by chunk, each frame once: what one that fits into a chunk gets is exact.

    Frames see at least an eighth of a chunk before and after them. Whatever a model normalizes over time (group norm), it
    normalizes within a chunk; every chunk has extra tokens of its own, and absolute positions count from its start.

    :param waveform: (1, T), or (1, T, C) of several channels.
    :param num_samples: of a chunk.
    """
    config = model.config.frontends[Modality.AUDIO]
    stride, width = config.samples_per_frame, model.shortest_input(Modality.AUDIO)
    # Of spectrograms a frame is a row of patches.
    columns = getattr(config, "columns", 1)
    num_frames = model.output_length(waveform.size(1), Modality.AUDIO) // columns
    chunk = max(8, num_samples // stride)
    if num_frames <= chunk:
        yield model.extract_features(waveform, modality=Modality.AUDIO)
        return

    overlap = math.ceil(chunk * OVERLAP)
    for start in range(0, num_frames, chunk - 2 * overlap):
        stop = min(num_frames, start + chunk - 2 * overlap)
        first, last = max(0, start - overlap), min(num_frames, stop + overlap)
        part = model.extract_features(waveform[:, first * stride : (last - 1) * stride + width], modality=Modality.AUDIO)
        own = slice((start - first) * columns, (stop - first) * columns)
        # Copies, so that what overlaps is not kept.
        layers = [layer[:, own].clone() for layer in part.layers]
        yield Features(part.x[:, own].clone(), None, layers, part.extra_tokens, part.extra_layers)


def estimate_memory(model: EncoderModel, num_samples: int) -> int:
    """Bytes, roughly, that the features of one recording take while they are computed, in fp32."""
    whole: Any = model.config
    config = whole.frontends[Modality.AUDIO]
    if sees_spectrograms(whole):
        # Frames of the waveform, their spectrum, and its power.
        convolutions = 3 * num_samples // config.shift * config.fft_size
    else:
        channels, _, stride = config.conv_layers[0]
        # The output of the first convolution, that of its norm, and what the second makes of them.
        convolutions = 3 * num_samples // stride * channels
    # The outputs of all blocks, and what one keeps on its way.
    num_frames = num_samples // config.samples_per_frame * getattr(config, "columns", 1)
    blocks = (len(model.blocks_of(Modality.AUDIO)) + 12) * whole.dim * num_frames
    weights = whole.num_heads * num_frames**2
    attention = 3 * (weights if weights <= LONG else LONG // 8)

    return int(4 * (convolutions + blocks + attention))


def estimate_shard(model: EncoderModel, lengths: Rows, shard_size: int, num_arrays: int, dtype: torch.dtype) -> int:
    """Bytes, roughly, that all frames of a shard take: twice the largest's while it is written, and those of the next one.

    :param lengths: (R,) of the recordings, in samples.
    """
    whole: Any = model.config
    config = whole.frontends[Modality.AUDIO]
    frames = lengths // config.samples_per_frame * getattr(config, "columns", 1)
    sizes = [int(frames[start : start + shard_size].sum()) for start in range(0, len(frames), shard_size)]
    copies = 2 if len(sizes) < 2 else 3

    return copies * max(sizes, default=0) * num_arrays * int(whole.dim) * dtype.itemsize


def find_free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None = it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None

    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
