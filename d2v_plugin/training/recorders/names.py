"""What metrics are called, apart from ``metrics/*.jsonl``: on the screen, in the log, and in TensorBoard, W&B and MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from fairseq2.metrics.formatters import format_as_byte_size
from torch import Tensor


class Name(NamedTuple):
    """How one metric is shown."""

    tag: str
    """``group/name`` in TensorBoard and its kind."""

    words: str
    """On the screen."""

    unit: str = ""
    """``s``, ``%`` (of a share), ``B`` (bytes), ``n`` (a count), or none."""


_TRAINING: Final = {
    "loss": Name("train/loss", "loss"),
    "regression_loss": Name("train/loss_regression", "regression loss"),
    "cls_loss": Name("train/loss_cls", "CLS loss"),
    "reconstruction_loss": Name("train/loss_reconstruction", "reconstruction loss"),
    "contrastive_loss": Name("train/loss_contrastive", "contrastive loss"),
    "diversity_loss": Name("train/loss_diversity", "diversity loss"),
    "features_penalty": Name("train/loss_features_penalty", "penalty on features"),
    "masked_fraction": Name("train/masked", "masked", "%"),
    "data_epoch": Name("train/epoch", "epoch", "n"),
    "batch_size": Name("train/batch_size", "batch", "n"),
    "num_examples": Name("train/samples_of_interval", "samples of these updates", "n"),
    "total_num_examples": Name("train/samples", "samples so far", "n"),
    "target_deviation": Name("targets/deviation", "deviation of targets"),
    "prediction_deviation": Name("targets/prediction_deviation", "deviation of predictions"),
    "explained_variance": Name("targets/explained_variance", "explained variance"),
    "target_rank": Name("targets/rank", "rank of targets"),
    "local_rank": Name("targets/local_rank", "rank of local features"),
    "local_deviation": Name("targets/local_deviation", "deviation of local features"),
    "lr": Name("optimizer/learning_rate", "learning rate"),
    "grad_norm": Name("optimizer/gradient_norm", "gradient norm"),
    "ema_decay": Name("optimizer/ema_decay", "EMA decay"),
    "loss_scale": Name("optimizer/loss_scale", "loss scale"),
    "total_skipped_updates": Name("optimizer/skipped_updates", "skipped updates", "n"),
    "samples_per_second": Name("time/samples_per_second", "samples/s"),
    "data_time": Name("time/data", "waited for data", "s"),
    "compute_time": Name("time/compute", "computed", "s"),
    "lapse_time": Name("time/interval", "time of these updates", "s"),
    "total_time": Name("time/total", "time so far", "s"),
    "wall_time": Name("time/since_start", "since the start", "s"),
    "peak_active_mem_bytes": Name("memory/peak_active", "most memory in use", "B"),
    "peak_active_mem_ratio": Name("memory/peak_active_share", "share of memory in use", "%"),
    "peak_reserved_mem_bytes": Name("memory/peak_reserved", "most memory reserved", "B"),
    "peak_reserved_mem_ratio": Name("memory/peak_reserved_share", "share of memory reserved", "%"),
}

LR: Final = "lr"
"""The highest learning rate of all groups; ``lr/<group>`` is that of one of several."""

_TIMES: Final = ("data_time", "compute_time", "lapse_time", "wall_time", "total_time")
_SCORES: Final = {"wer": "word error rate", "cer": "character error rate", "f1": "F1", "uer": "unit error rate", "knn": "k-NN"}


def name_metric(category: str, metric: str) -> Name:
    """Name a metric.

    :param category: fairseq2's name of what publishes it: ``train``, ``valid/probe``, ``valid/<split>``, ``eval/…``.
    """
    if category == "train":
        if metric.startswith(f"{LR}/"):
            group = metric.removeprefix(f"{LR}/")
            return Name(f"{_TRAINING[LR].tag}/{group.replace(' ', '_')}", f"learning rate of {group}")
        return _TRAINING.get(metric) or Name(f"train/{metric}", metric.replace("_", " "))

    phase, _, unit = category.partition("/")
    if metric in _TIMES:
        known = _TRAINING[metric]
        return Name(known.tag.replace("time/", f"time/{phase}_{unit}/" if unit else f"time/{phase}/"), known.words, known.unit)
    if metric.startswith("probe_"):
        probe, _, layer = metric.removeprefix("probe_").partition("_layer")
        words = f"{_SCORES.get(probe, probe)} probe"
        group = "probe" if unit in ("", "probe") else f"probe/{unit}"
        if layer.endswith("_weight"):
            number = layer.removesuffix("_weight")
            return Name(f"{group}/{probe}_weights/{number}", f"{words}, weight of layer {number}")
        return Name(f"{group}/{probe}_layers/{layer}", f"{words}, layer {layer}") if layer else Name(f"{group}/{probe}", words)
    group = phase if unit in ("", phase) else f"{phase}/{unit}"

    return Name(f"{group}/{metric}", _SCORES.get(metric, metric.replace("_", " ")))


def flatten(category: str, values: Mapping[str, object]) -> Iterator[tuple[Name, float | str]]:
    """Yield metrics with their names, as plain numbers or text: the losses first, the rest in the order of the table."""
    known = list(_TRAINING)

    def place(metric: str) -> float:
        if metric.startswith(f"{LR}/"):
            return known.index(LR) + 0.5
        # What only this criterion or this split has comes behind the losses.
        return known.index(metric) if metric in _TRAINING else known.index("masked_fraction") - 0.5

    for metric in sorted(values, key=place):
        name, value = name_metric(category, metric), values[metric]
        if isinstance(value, Tensor):
            value = value.tolist()
        if isinstance(value, str | int | float):
            yield name, value
        elif isinstance(value, Sequence):
            for index, part in enumerate(value):
                yield Name(f"{name.tag}/{index}", f"{name.words} ({index})", name.unit), float(part)


def format_value(name: Name, value: float | str, *, digits: int = 4) -> str:
    """Format a value with its unit: ``0.0234``, ``82 %``, ``0.02 s``, ``1,234``."""
    if isinstance(value, str):
        return value
    if name.unit == "B":
        return format_as_byte_size(float(value))
    if name.unit == "n":
        return f"{value:,.0f}"
    number = value * 100 if name.unit == "%" else value
    shown = f"{number:,.0f}" if 10**digits <= abs(number) < 1e15 else f"{number:.{digits}g}"

    return f"{shown} {name.unit}" if name.unit else shown
