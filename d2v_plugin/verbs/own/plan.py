"""A plan: the recipe for a dataset, a machine and a length, and why each number is what it is.

Small runs are what most people begin with, so the settings are those that train reliably there: a teacher that follows slowly
(the horizon of its average is as long as the run; faster ones lose the rank of their targets), first predictions of zero (others
push the student towards a collapse in its first updates), and a long warm-up for speech.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from d2v_plugin.core.batch import Modality
from d2v_plugin.verbs.own.facts import Data, Machine

Size = Literal["tiny", "small", "base"]

# FLOP that a model of this size needs before it is worth more than a smaller one, and samples (text: tokens).
_WORTH: Final[Mapping[Size, tuple[float, Mapping[Modality, float]]]] = {
    "base": (1e18, {Modality.AUDIO: 2e4, Modality.IMAGE: 5e4, Modality.TEXT: 1e8}),
    "small": (3e14, {Modality.AUDIO: 2e3, Modality.IMAGE: 5e3, Modality.TEXT: 5e6}),
}
_SMALL: Final = {"dim": 192, "depth": 6, "num_heads": 6}
_RATES: Final = {
    Modality.AUDIO: {"tiny": 1e-3, "small": 7e-4, "base": 7.5e-4},
    Modality.IMAGE: {"tiny": 3e-3, "small": 1.5e-3, "base": 1e-3},
    Modality.TEXT: {"tiny": 5e-3, "small": 7e-4, "base": 2e-4},
}
_WARMUPS: Final = {Modality.AUDIO: "30%", Modality.IMAGE: "12%", Modality.TEXT: "12%"}


@dataclass(frozen=True)
class Plan:
    """A recipe of training."""

    recipe: dict[str, Any]
    """Its sections, as plain data."""

    size: Size


def choose_size(data: Data, machine: Machine, seconds: float) -> Size:
    """Choose the largest model that data, machine and time are worth."""
    for size, (flops, samples) in _WORTH.items():
        if machine.flops * seconds >= flops and data.num_samples >= samples[data.modality]:
            return size

    return "tiny"


def make_plan(data: Data, machine: Machine, *, seconds: float, num_steps: int, model: Mapping[str, Any] | None = None) -> Plan:
    """Choose all settings.

    :param seconds: the time that training is given.
    :param num_steps: how many updates it makes.
    :param model: the section ``model`` of what training starts from, which is kept; None = choose one.
    """
    size = choose_size(data, machine, seconds)
    parts = {Modality.AUDIO: _plan_audio, Modality.IMAGE: _plan_images, Modality.TEXT: _plan_text}[data.modality]
    task, overrides, criterion, optimizer = parts(data, machine, size)
    modality = data.modality.value
    if model is None:
        if size == "small":
            overrides = {**_SMALL, **overrides}
        model = {
            "family": "data2vec",
            "arch": f"{modality}_{'base' if size == 'base' else 'tiny'}",
            "config_overrides": {**overrides, "prediction_init_scale": 0.0},
        }
    recipe: dict[str, Any] = {
        "task": {"name": f"{modality}_pretraining", "config": task},
        "dataset": {"family": f"{modality}_manifest", "config_overrides": {"path": str(data.path)}},
        "model": dict(model),
        "criterion": {"name": "data2vec2", "config": {**criterion, "ema": choose_ema(num_steps)}},
        "optimizer": {"config": {"lr": _RATES[data.modality][size], **optimizer}},
        "lr_scheduler": {"config": {"num_warmup_steps": _WARMUPS[data.modality]}},
        "trainer": {"max_grad_norm": 4.0 if data.modality is Modality.IMAGE else 1.0},
        "regime": choose_intervals(num_steps, seconds),
        "common": {"seed": 1},
    }
    if machine.device == "cuda":
        recipe["trainer"]["mixed_precision"] = {"mode": "auto", "dtype": "bfloat16"}
    if data.probe_split is not None:
        recipe["probing"] = {"probes": [{"name": "linear"}, {"name": "knn"}], "train_split": data.probe_split}
        if data.modality is Modality.AUDIO:
            recipe["probing"] |= {"layers": "all", "pooling": "statistics"}

    return Plan(recipe, size)


def choose_ema(num_steps: int) -> dict[str, Any]:
    """The teacher's decay: a horizon as long as the run, four times as long from its middle on; never faster than 1 in 200."""
    horizon = min(max(num_steps, 200), 5000)

    return {"start": round(1 - 1 / horizon, 6), "end": round(1 - 1 / (4 * horizon), 6), "anneal_steps": "50%"}


def choose_intervals(num_steps: int, seconds: float) -> dict[str, Any]:
    """Length and intervals; a checkpoint at least every 10 minutes or so."""
    checkpoint = max(1, min(20, round(100 * 600 / max(seconds, 1.0))))
    return {
        "num_steps": num_steps,
        "publish_metrics_every_n_steps": "2%",
        "validate_every_n_steps": "20%",
        "checkpoint_every_n_steps": f"{checkpoint}%",
        "keep_last_n_checkpoints": 1,
    }


Parts = tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]
"""Settings of the task, overrides of the model, settings of the criterion and of the optimizer."""


def _plan_audio(data: Data, machine: Machine, size: Size) -> Parts:
    low, _, high = data.lengths
    longest = min(max(high, 8000), 320_000 if size == "base" else 32_000)
    # A recording that is left out is not learned from, and one of a tenth of a second makes five frames.
    shortest = min(32_000 if size == "base" else 4000, max(low, 1600))
    sound = {"tiny": 96_000, "small": 320_000, "base": 1_000_000}[size] * (
        2 if machine.device == "cuda" and size != "base" else 1
    )
    batches = machine.num_processes * (8 // machine.num_processes or 1 if size == "base" else 1)
    task = {
        "batches_per_update": batches,
        "max_num_elements": max(sound, longest),
        "min_sample_size": shortest,
        "max_sample_size": longest,
        "audio": {"resample": data.resample},
    }
    # Loudness stays, which short runs begin with; recipes/study/starting.md.
    overrides = {"audio": {"conv_norm": "group_norm"} | ({} if size == "base" else {"local_grad_scale": 0.1})}
    criterion = {
        "num_views": 8 if size == "base" else 4,
        "masking": {"name": "block", "config": {"ratio": 0.5, "block_size": 5, "adjust": 0.05}},
        "teacher_scope": "context",
        "targets": {"instance_norm_layers": True} | ({} if size == "base" else {"num_layers": 3}),
    }

    return task, overrides, criterion, {"betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01}


def _plan_images(data: Data, machine: Machine, size: Size) -> Parts:
    is_small = data.side < 64
    pixels, patch = (32, 4) if is_small else (64, 8)
    if size == "small" and data.side >= 128:
        pixels, patch = 128, 16
    if size == "base":
        pixels, patch = 224, 16
    batch = {"tiny": 32, "small": 64, "base": 256}[size] * (4 if machine.device == "cuda" and size != "base" else 1)
    image: dict[str, Any] = {"size": pixels}
    if size != "base":
        image["crop_scale"] = [0.8 if is_small else 0.4, 1.0]
    if is_small:
        image |= {"flip": 0.0, "eval_resize": 1.0}
    task = {"batch_size": round_to(batch, machine.num_processes), "image": image}
    overrides = {} if size == "base" else {"image": {"image_size": pixels, "patch_size": patch}}
    criterion = {
        "num_views": 16 if size == "base" else 8,
        "masking": {"name": "inverse_block", "config": {"ratio": 0.8, "block_size": 3, "adjust": 0.07}},
        "targets": {"instance_norm_layers": True, "layer_norm": True}
        | ({"num_layers": 10} if size == "base" else {"num_layers": 2}),
        "cls_weight": 2.56 if size == "base" else 0.01,
    }

    return task, overrides, criterion, {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.05}


def _plan_text(data: Data, machine: Machine, size: Size) -> Parts:
    batch = {"tiny": 8, "small": 32, "base": 64}[size] * (4 if machine.device == "cuda" and size != "base" else 1)
    task = {"batch_size": round_to(batch, machine.num_processes), "tokens_per_sample": 512 if size == "base" else 128}
    # Positions are what short runs learn first, and then learn nothing else; recipes/study/starting.md.
    overrides = {"text": {"vocab_size": data.vocabulary} | ({} if size == "base" else {"position_scale": 0.1})}
    criterion = {
        "num_views": 8 if size == "base" else 2,
        "masking": {"name": "random", "config": {"ratio": 0.48}},
        "teacher_scope": "blocks",
        "targets": {"instance_norm_layers": True} | ({"num_layers": 12} if size == "base" else {"num_layers": 4}),
        "loss_scale": 1.0,
    }

    return task, overrides, criterion, {"betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01}


def round_to(number: int, unit: int) -> int:
    """The multiple of ``unit`` closest to ``number``, at least one."""
    return max(1, round(number / unit)) * unit
