"""The lines that a run begins with: what is trained, on what, how, and where the results will be."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from fairseq2.device import Device
from fairseq2.gang import Gangs
from fairseq2.recipe.base import RecipeContext
from torch.optim import Optimizer

from d2v_plugin.core.secrets import hide_in
from d2v_plugin.criteria.supervised.base import SupervisedConfig
from d2v_plugin.data.dataset import ManifestDataset, MultimodalManifests
from d2v_plugin.data.sentences import Sentences
from d2v_plugin.models.base import CRITERION_PREFIX, EncoderModel
from d2v_plugin.tasks.multimodal import MultimodalPretrainingConfig
from d2v_plugin.training.numerics import describe_numerics
from d2v_plugin.verbs.train.config import TrainConfig
from d2v_plugin.weights.run_folder import RunFolder

_INDENT: Final = 11

# How tasks call the size of an update, or of what is computed at a time, in words.
_SIZES: Final = {
    "batch_size": "{:,} samples an update",
    "batches_per_update": "{:,} batches an update",
    "max_batch_size": "at most {:,} samples at a time",
    "max_num_elements": "at most {:,} values a batch",
    "max_num_tokens": "at most {:,} tokens a batch",
}


def describe_start(context: RecipeContext, model: EncoderModel, checkpoints: Path) -> str:
    """Describe a run before its first update, in ten lines.

    :param model: the bare model with its criterion.
    :param checkpoints: the folder of the run's checkpoints.
    """
    config = context.get_config_as(TrainConfig)
    lines = {
        "train": f"{config.criterion.name} ({config.task.name}), {describe_length(config)}",
        "data": hide_in("; ".join(describe_data(context.get_dataset(), used_splits(config)))),
        "model": f"{config.model.family} {config.model.arch}, {describe_size(model)}",
        "start": "random weights" if config.init.path is None else f"{config.init.weights} of {hide_in(config.init.path)}",
        "batch": describe_batch(config, context.gangs),
        "optimizer": describe_optimizer(context.get_optimizer(), config),
        "device": describe_device(context.device, context.gangs, config),
        "intervals": describe_intervals(config),
        "results": ", ".join(dict.fromkeys(map(str, (context.output_dir, checkpoints.parent)))),
        "log": f"{RunFolder(context.output_dir).logs}; `--verbose` shows all of it here",
    }

    return "\n".join(_fold(f"{name + ':':<{_INDENT}}{line}") for name, line in lines.items())


def describe_length(config: TrainConfig) -> str:
    """``500 updates``, and of what the head is trained alone."""
    text = f"{config.regime.num_steps:,} updates"
    criterion = config.criterion.config
    frozen = criterion.freeze_updates if isinstance(criterion, SupervisedConfig) else 0

    return f"{text}, the head alone in the first {frozen:,}" if frozen else text


def used_splits(config: TrainConfig) -> list[str]:
    """The splits that a run reads, each once: to train on, then to measure on."""
    splits = [getattr(config.task.config, "split", "train")]
    if config.probing.probes:
        splits += [config.probing.train_split, config.probing.valid_split]
    if isinstance(config.criterion.config, SupervisedConfig):
        splits += config.validation.splits

    return list(dict.fromkeys(splits))


def describe_data(dataset: object, splits: list[str]) -> Iterator[str]:
    """``manifests/digits (train 1,200, valid 199)`` for each part of a dataset; nothing of kinds that extensions bring."""
    if isinstance(dataset, MultimodalManifests):
        for modality, part in dataset.parts.items():
            yield f"{modality.value} {next(describe_data(part, splits))}"
        return
    parts: Mapping[str, Any] = {}
    if isinstance(dataset, ManifestDataset):
        parts = dataset.splits
    elif isinstance(dataset, Sentences):
        parts = dataset.tables
    paths = [part.path for part in getattr(dataset, "parts", ())] or [getattr(dataset, "path", type(dataset).__name__)]
    path = " + ".join(map(_shorten, paths))
    sizes = ", ".join(f"{name} {len(parts[name]):,}" for name in splits if name in parts)

    yield f"{path} ({sizes})" if sizes else path


def describe_size(model: EncoderModel) -> str:
    """``12 blocks of width 768, 93.1 M parameters, 85.0 M of them trained``"""
    own = [(name, parameter) for name, parameter in model.named_parameters()]
    trained = sum(parameter.numel() for _, parameter in own if parameter.requires_grad)
    encoder = sum(parameter.numel() for name, parameter in own if not name.startswith(CRITERION_PREFIX))

    return f"{len(model.blocks)} blocks of width {model.config.dim}, {_count(encoder)} parameters; {_count(trained)} are trained"


def describe_batch(config: TrainConfig, gangs: Gangs) -> str:
    """The size of an update as the task calls it, views of each sample, and how many processes share it."""
    task = config.task.config
    if isinstance(task, MultimodalPretrainingConfig):
        parts = ["each modality its own"]
    else:
        sizes = {name: getattr(task, name, None) for name in _SIZES}
        parts = [_SIZES[name].format(size) for name, size in sizes.items() if size is not None]
    views = getattr(config.criterion.config, "num_views", 1)
    if views > 1:
        parts.append(f"{views} masked views of each sample")
    if gangs.dp.size > 1:
        parts.append(f"{gangs.dp.size} processes together")

    return ", ".join(parts) or "as the task has it"


def describe_optimizer(optimizer: Optimizer, config: TrainConfig) -> str:
    """Its name, the peak learning rates, and how they change."""
    rates = sorted({float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups})
    decay = max(group.get("weight_decay", 0.0) for group in optimizer.param_groups)
    peak = f"{rates[-1]:.3g}" if len(rates) == 1 else f"{rates[0]:.3g} to {rates[-1]:.3g} by layer"
    warm_up = getattr(config.lr_scheduler.config, "num_warmup_steps", 0)
    parts = [config.optimizer.name, f"learning rate {peak}", config.lr_scheduler.name.replace("_", " ")]
    if warm_up:
        parts.append(f"warm-up {warm_up:,}")
    if decay:
        parts.append(f"weight decay {decay:g}")

    return ", ".join(parts)


def describe_device(device: Device, gangs: Gangs, config: TrainConfig) -> str:
    """What computes, with how many threads or processes, in which precision."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        what = f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    else:
        what = f"{device.type.upper()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    precision = config.trainer.mixed_precision
    dtype = config.model.dtype if precision.mode == "off" else precision.dtype
    mixed = "" if precision.mode == "off" else "mixed "
    processes = f"{gangs.root.size} processes ({config.trainer.data_parallelism}), each on " if gangs.root.size > 1 else ""

    numerics = f"; {describe_numerics(allow_tf32=config.common.torch.allow_tf32)}" if device.type == "cuda" else ""

    return f"{processes}{what}, {mixed}{str(dtype).removeprefix('torch.')}{numerics}"


def describe_intervals(config: TrainConfig) -> str:
    """How often what happens: ``metrics every 20, probes every 100, checkpoints every 100 updates, and at the end``."""
    regime = config.regime
    measured = ["probes"] if config.probing.probes else []
    measured += ["scores"] if isinstance(config.criterion.config, SupervisedConfig) else []
    intervals = {
        "metrics": regime.publish_metrics_every_n_steps,
        " and ".join(measured): regime.validate_every_n_steps if measured else None,
        "checkpoints": regime.checkpoint_every_n_steps,
    }
    shown = ", ".join(f"{what} every {number:,}" for what, number in intervals.items() if number is not None)

    return f"{shown} updates, and at the end" if shown else "all at the end"


def _fold(line: str) -> str:
    """Fold a line between words where a terminal would break it anywhere."""
    if not sys.stdout.isatty():
        return line
    width = shutil.get_terminal_size().columns

    return textwrap.fill(line, width, subsequent_indent=" " * _INDENT, break_long_words=False, break_on_hyphens=False)


def _shorten(path: object) -> str:
    """A path below the working directory, without what all know."""
    try:
        return str(Path(str(path)).resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
