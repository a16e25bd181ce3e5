"""Features of two labelled splits, collected batch by batch on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from fairseq2.gang import Gang
from torch import Tensor

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.log import log
from d2v_plugin.models.base import Features
from d2v_plugin.models.pooling import Pooling, pool_features, split_samples
from d2v_plugin.probing.base import Probe, ProbeData

_NUM_NAMED = 20


class FeatureCollection:
    """The data that probes are fitted and tested on; the same whatever rank read which sample, in whatever order."""

    def __init__(self, probes: Iterable[Probe], layers: Sequence[int], pooling: Pooling, *, weighted: bool = False) -> None:
        """
        :param probes: those that will be fitted; every token is kept only if one of them wants it.
        :param layers: the blocks whose output is probed, from 0.
        :param weighted: probes see all of them at once, rather than one after the other.
        """
        self._weighted = weighted
        self._layers = list(layers)
        self._pooling = pooling
        self._with_tokens = any(probe.needs_tokens for probe in probes)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._num_samples = 0
        self._not_finite: list[str] = []
        self._rows: list[Tensor] = []
        self._pooled: list[Tensor] = []
        self._tokens: list[Tensor] = []

    def add(self, features: Features, batch: Batch, *, is_train: bool, name: Callable[[int], str] = str) -> None:
        """Add the features of a batch with its labels.

        :param name: what a sample is called in reports, by its id.
        :raises ValueError: the batch has no labels.
        """
        ids, labels = batch.ids, batch.labels
        if labels is None:
            raise ValueError("Probes need labels, but the manifest of a probed split has none.")

        # (N, L·D)
        self._pooled.append(torch.cat([pool_features(features, layer, self._pooling) for layer in self._layers], dim=1))
        self._num_samples += len(ids)
        finite = self._pooled[-1].isfinite().all(dim=1)
        if not bool(finite.all()):
            self._not_finite += [name(int(sample)) for sample in ids[~finite]]
        lengths = torch.zeros_like(ids)
        if self._with_tokens:
            # (N, S, L·D)
            tokens = torch.cat([features.layers[layer].to(torch.float32) for layer in self._layers], dim=2)
            samples = split_samples(tokens, features.padding_mask)
            lengths = torch.tensor([len(sample) for sample in samples], device=ids.device)
            self._tokens.extend(samples)
        # (N, 4), sorted by split and sample later on
        self._rows.append(torch.stack([torch.full_like(ids, is_train), ids, labels.to(ids.dtype), lengths], dim=1))

    def gather(self, gang: Gang) -> dict[int, tuple[ProbeData, ProbeData]]:
        """Bring what all ranks collected together.

        :returns: on the first rank the training and the test split by layer, or those of all layers by the first; nothing on
            the others.
        """
        self._report()
        rows = _gather_rows(self._rows, gang, dtype=torch.int64, width=4)
        pooled = _gather_rows(self._pooled, gang)
        tokens = _gather_rows(self._tokens, gang) if self._with_tokens else None
        self.clear()
        if gang.rank != 0:
            return {}

        # One order whatever rank read a sample, so that sums are rounded the same way.
        order = rows[:, 1].argsort(stable=True)
        samples: Sequence[Tensor] = () if tokens is None else tokens.split(rows[:, 3].tolist())

        def take(index: int, is_train: int) -> ProbeData:
            chosen = order[rows[order, 0] == is_train]

            return ProbeData(
                _cut(pooled[chosen], index, num_parts),
                rows[chosen, 2],
                [_cut(samples[row], index, num_parts) for row in chosen.tolist()] if self._with_tokens else (),
                len(self._layers) // num_parts,
            )

        num_parts = 1 if self._weighted else len(self._layers)

        return {layer: (take(index, 1), take(index, 0)) for index, layer in enumerate(self._layers[:num_parts])}

    def _report(self) -> None:
        """Say which samples of this rank the probes leave out (:meth:`ProbeData.finite`)."""
        if not self._not_finite:
            return
        more = len(self._not_finite) - _NUM_NAMED
        log.warning(
            "The features of {:,} of {:,} samples are not finite; probes leave them out: {}{}",
            len(self._not_finite),
            self._num_samples,
            "; ".join(self._not_finite[:_NUM_NAMED]),
            f"; … and {more:,} more." if more > 0 else ".",
        )


def _cut(x: Tensor, index: int, count: int) -> Tensor:
    """Cut out one of several layers: (n, L·D) -> (n, D)"""
    return x.chunk(count, dim=1)[index]


def _gather_rows(parts: Sequence[Tensor], gang: Gang, *, dtype: torch.dtype = torch.float32, width: int = 0) -> Tensor:
    """Concatenate the rows that all ranks collected, (n, D) each, in the order of the ranks.

    :param width: D; a rank that read nothing does not know it.
    """
    width = parts[0].size(1) if parts else width
    own = torch.cat([torch.empty((0, width), dtype=dtype, device=gang.device), *parts])

    sizes = [torch.empty(2, dtype=torch.int64, device=gang.device) for _ in range(gang.size)]
    gang.all_gather_to_list(sizes, torch.tensor(own.shape, device=gang.device))
    num_rows, width = torch.stack(sizes).amax(dim=0).tolist()

    # All ranks must contribute tensors of one shape.
    padded = own.new_zeros((num_rows, width))
    padded[: own.size(0), : own.size(1)] = own
    gathered = [torch.empty_like(padded) for _ in range(gang.size)]
    gang.all_gather_to_list(gathered, padded)

    return torch.cat([part[: int(size[0])] for part, size in zip(gathered, sizes, strict=True)])
