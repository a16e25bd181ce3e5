"""Predictions of a model, each beside its reference."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from fairseq2.gang import Gang
from torch import Tensor

from d2v_plugin.scoring.answers import Answer, Value


@dataclass(frozen=True)
class Prediction:
    """One sample of an evaluated split."""

    id: int
    """Its row in the manifest."""

    loss: float
    """Summed over its targets."""

    num_targets: int
    """Number of its targets."""

    hypothesis: Value
    """The model's answer."""

    reference: Value
    """The right answer; empty = nobody knows it."""

    confidence: float | None = None
    """See :class:`d2v_plugin.scoring.answers.Answer`."""


def build_predictions(ids: Tensor, losses: Tensor, answers: Sequence[Answer], references: Sequence[Value]) -> list[Prediction]:
    """The predictions of a batch, with one target for each sample."""
    columns = zip(ids.tolist(), losses.tolist(), answers, references, strict=True)
    return [Prediction(id, loss, 1, own.hypothesis, right, own.confidence) for id, loss, own, right in columns]


def gather_predictions(own: Sequence[Prediction], gang: Gang) -> list[Prediction]:
    """The predictions of all ranks, one per sample, sorted by row: the same for any number of ranks."""
    # JSON, because Python writes floats so that they come back unchanged.
    text = json.dumps([list(asdict(prediction).values()) for prediction in own]).encode()
    parts = [json.loads(part) for part in _gather_bytes(text, gang)]
    by_id = {prediction.id: prediction for part in parts for prediction in (Prediction(*row) for row in part)}

    return [by_id[row] for row in sorted(by_id)]


def mean_loss(predictions: Iterable[Prediction]) -> float:
    """The loss per target; NaN if there are no predictions."""
    rows = list(predictions)
    num_targets = sum(prediction.num_targets for prediction in rows)
    return sum(prediction.loss for prediction in rows) / num_targets if num_targets else float("nan")


def _gather_bytes(content: bytes, gang: Gang) -> list[bytes]:
    own = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(gang.device)
    sizes = [torch.zeros((), dtype=torch.int64, device=gang.device) for _ in range(gang.size)]
    gang.all_gather_to_list(sizes, torch.tensor(own.numel(), device=gang.device))

    # All ranks must contribute the same number of bytes.
    longest = int(torch.stack(sizes).max())
    parts = [own.new_zeros(longest) for _ in range(gang.size)]
    gang.all_gather_to_list(parts, torch.nn.functional.pad(own, (0, longest - own.numel())))

    return [part[: int(size)].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]
