"""From batches to the arrays of a shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch
from d2v_plugin.extraction.chunks import SAMPLE_RATE, count_samples, find_long, iterate_chunks
from d2v_plugin.extraction.shards import IDS, LENGTHS
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.models.pooling import (
    Layers,
    Pooling,
    compute_moments,
    pool_features,
    pool_moments,
    resolve_layers,
    split_samples,
)


def name_arrays(layers: Layers, top_k: int | None, num_layers: int) -> dict[str, list[int]]:
    """The arrays of a shard, and the blocks whose mean each of them is.

    :raises ValueError: the model has no such blocks.
    """
    if top_k is None:
        return {f"layer_{layer}": [layer] for layer in resolve_layers(layers, num_layers)}
    if top_k > num_layers:
        raise ValueError(f"`top_k` must be at most {num_layers}, the number of blocks, but is {top_k}.")
    return {f"top_{top_k}": list(range(num_layers - top_k, num_layers))}


@dataclass(frozen=True)
class Extractor:
    """Computes the features of samples."""

    model: EncoderModel

    arrays: Mapping[str, Sequence[int]]
    """See :func:`name_arrays`."""

    pooling: Pooling | Literal["none"]

    dtype: torch.dtype

    device: torch.device

    amp: bool = False
    """Whether to compute in bfloat16."""

    chunk_seconds: float | None = None
    """Recordings longer than this are computed in chunks; see :func:`iterate_chunks`. None = all are computed whole."""

    sample_rate: int = SAMPLE_RATE
    """Of the recordings, as they are read."""

    @property
    def chunk_samples(self) -> int | None:
        """Samples of a chunk."""
        return count_samples(self.chunk_seconds, self.sample_rate)

    def compute(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The arrays of a shard, on the CPU.

        :returns: ``ids`` (n,), ascending, and for each name (n, D); with pooling ``none`` also ``lengths`` (n,), and for each
            name (sum of the lengths, D), one sample after the other.
        """
        ids: list[int] = []
        rows: dict[str, list[Tensor]] = {name: [] for name in self.arrays}
        for batch in batches:
            batch.to(self.device)
            for name, samples in self._compute_batch(batch).items():
                rows[name].extend(samples)
            ids += batch.ids.tolist()

        order = sorted(range(len(ids)), key=ids.__getitem__)
        found = {IDS: torch.tensor(ids, dtype=torch.int64)[order]}
        if self.pooling == "none":
            first = next(iter(rows.values()))
            found[LENGTHS] = torch.tensor([len(first[row]) for row in order], dtype=torch.int64)
        for name, samples in rows.items():
            ordered = [samples[row] for row in order]
            samples.clear()
            join = torch.cat if self.pooling == "none" else torch.stack
            found[name] = join(ordered) if ordered else torch.empty((0, 0), dtype=self.dtype)

        return found

    def _compute_batch(self, batch: Batch) -> dict[str, Sequence[Tensor]]:
        """For each array N × (D,), or N × (S_n, D) with pooling ``none``."""
        if (chunk := self.chunk_samples) is not None and (recordings := find_long(batch, chunk)):
            alone = [self._compute_long(row, chunk) for row in recordings]
            return {name: [found[name] for found in alone] for name in self.arrays}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            features = self.model.extract_features(
                batch.inputs, batch.padding_mask, modality=batch.modality, lengths=batch.lengths
            )

        return self._pool(features)

    def _compute_long(self, waveform: Tensor, chunk: int) -> dict[str, Tensor]:
        """The arrays of a recording (T,) or (T, C); of a chunk only what is written of it is kept."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.arrays}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            for features in iterate_chunks(self.model, waveform.unsqueeze(0), chunk):
                for name, layers in self.arrays.items():
                    merged = _average_layers(features, layers)
                    frames = merged.layers[0][0]
                    if self.pooling == "cls" and merged.extra_layers is not None:
                        frames = merged.extra_layers[0][0, -1:]
                    parts[name].append(frames.to(self.dtype).cpu() if self.pooling == "none" else compute_moments(frames))
        if self.pooling == "none":
            return {name: torch.cat(found) for name, found in parts.items()}

        return {name: pool_moments(torch.stack(found).sum(dim=0), self.pooling).to(self.dtype) for name, found in parts.items()}

    def _pool(self, features: Features) -> dict[str, Sequence[Tensor]]:
        found: dict[str, Sequence[Tensor]] = {}
        for name, layers in self.arrays.items():
            merged = _average_layers(features, layers)
            if self.pooling == "none":
                x = merged.layers[0].to(self.dtype).cpu()
                # Copies, so that the padding of the batch is not kept.
                found[name] = [sample.clone() for sample in split_samples(x, features.padding_mask)]
            else:
                found[name] = pool_features(merged, 0, self.pooling).to(self.dtype).cpu().unbind(0)

        return found


def _average_layers(features: Features, layers: Sequence[int]) -> Features:
    """Features whose only layer is the mean of some."""

    def average(outputs: Sequence[Tensor]) -> Tensor:
        return torch.stack([outputs[layer].to(torch.float32) for layer in layers]).mean(dim=0)

    extra = None if features.extra_layers is None else [average(features.extra_layers)]

    return Features(features.x, features.padding_mask, [average(features.layers)], features.extra_tokens, extra)
