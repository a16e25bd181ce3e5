"""Comparison of what was exported with our own model, on a small batch with padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.criteria.supervised.classification import ClassificationCriterion
from d2v_plugin.criteria.supervised.frames import FrameCriterion
from d2v_plugin.criteria.supervised.tagging import AudioTaggingCriterion
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.models.families import AnyModel

Differences = Mapping[str, float]
"""The largest difference of each output, by its name."""

_SEED = 1
_NUM_TOKENS = 24


@dataclass(frozen=True)
class Outputs:
    """What a model makes of a batch."""

    blocks: list[Tensor]
    """The output of every shared block, (N, X + S, D), extra tokens first."""

    head: Tensor | None
    """Logits (N, C), or (N, S, C) of CTC; of tags their probabilities (N, C). None = there is no head."""

    valid: Tensor
    """(N, X + S), False = padding, where outputs mean nothing."""

    num_extra_tokens: int
    """X"""


def draw_batch(model: AnyModel, modality: Modality) -> Batch:
    """Draw inputs of three lengths, the same ones every time; images of one size."""
    generator = torch.Generator().manual_seed(_SEED)
    config = model.config.frontends[modality]
    if modality is Modality.IMAGE:
        inputs = torch.randn(2, config.num_channels, *config.image_shape, generator=generator)
        return Batch(modality, inputs, torch.arange(2))

    if modality is Modality.AUDIO:
        shortest = model.shortest_input(modality)
        longest = shortest + _NUM_TOKENS * config.samples_per_frame
        lengths = torch.tensor([longest, shortest + (longest - shortest) // 2, shortest])
        num_channels = getattr(config, "num_channels", 1)
        inputs = torch.randn(3, longest, *([num_channels] if num_channels > 1 else []), generator=generator)
    else:
        longest = min(_NUM_TOKENS, config.max_positions)
        lengths = torch.tensor([longest, max(1, longest // 2), 1])
        first = config.pad_idx + 1
        inputs = torch.randint(first, max(first + 1, config.vocab_size), (3, longest), generator=generator)
    padding_mask = torch.arange(longest) >= lengths.unsqueeze(1)
    inputs = inputs.masked_fill(
        padding_mask.view(3, longest, *[1] * (inputs.dim() - 2)), 0 if modality is Modality.AUDIO else config.pad_idx
    )

    return Batch(modality, inputs, torch.arange(3), padding_mask)


@torch.no_grad()
def compute_outputs(exportable: Exportable, batch: Batch) -> Outputs:
    """Run our own model.

    :raises TypeError: the head is none of those of this package.
    """
    model = exportable.model
    features = model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)
    blocks, num_extra = features.layers, 0
    if features.extra_layers is not None:
        num_extra = features.extra_layers[0].size(1)
        blocks = [torch.cat(parts, dim=1) for parts in zip(features.extra_layers, blocks, strict=True)]
    valid = torch.ones(blocks[-1].shape[:2], dtype=torch.bool)
    if features.padding_mask is not None:
        valid[:, num_extra:] = ~features.padding_mask
    head = None if batch.modality is not exportable.modality else _compute_head(exportable, batch)

    return Outputs(blocks, head, valid, num_extra)


def _compute_head(exportable: Exportable, batch: Batch) -> Tensor | None:
    model, criterion = exportable.model, exportable.criterion
    match criterion:
        case None:
            return None
        case AudioTaggingCriterion():
            return criterion.compute_log_probs(model, batch).exp()
        case FrameCriterion():
            return criterion.compute_logits(model, batch, None)[0]
        case ClassificationCriterion():
            return criterion.compute_logits(model, batch)
        case _:
            raise TypeError(f"{type(criterion).__name__} has no outputs that are known here.")


def compare_outputs(expected: Outputs, blocks: list[Tensor], head: Tensor | None) -> Differences:
    """Compare at valid positions; see :func:`largest_difference`.

    :param blocks: as in :class:`Outputs`.
    :param head: likewise.
    """
    found = {"blocks": 0.0}
    for ours, theirs in zip(expected.blocks, blocks, strict=True):
        found["blocks"] = max(found["blocks"], largest_difference(ours[expected.valid], theirs[expected.valid]))
    if expected.head is not None and head is not None:
        ours, theirs = expected.head, head
        if ours.dim() == 3:
            frames = expected.valid[:, expected.num_extra_tokens :]
            ours, theirs = ours[frames], theirs[frames]
        found["head"] = largest_difference(ours, theirs)

    return found


def largest_difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference, as a share of what is expected where that is more than 1; infinite if shapes or NaNs differ."""
    if expected.shape != found.shape:
        return float("inf")
    found = found.detach()
    difference = (found.double() - expected.double()).abs() / expected.double().abs().clamp_min(1.0)

    return float(difference.nan_to_num(nan=float("inf")).amax())
