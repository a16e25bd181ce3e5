"""What was chosen for a run, in ten lines, each with what changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from d2v_plugin.core.batch import Modality
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.verbs.own.calibration import Calibration
from d2v_plugin.verbs.own.facts import Data, Machine
from d2v_plugin.verbs.own.memory import count_parameters, estimate_memory, read_model
from d2v_plugin.verbs.own.wish import format_seconds

_INPUT_KEYS: Final = {
    Modality.AUDIO: "task.config.max_sample_size=…",
    Modality.IMAGE: "task.config.image.size=…",
    Modality.TEXT: "task.config.tokens_per_sample=…",
}


@dataclass(frozen=True)
class Found:
    """The data to learn from."""

    data: Data
    source: Path
    """What the user named."""
    report: Report | None = None
    """Of writing their manifests; None = they had some."""
    notes: Sequence[str] = ()


def describe(found: Found, recipe: Mapping[str, Any], machine: Machine, measured: Calibration | None) -> list[str]:
    """Describe a plan of pre-training.

    :param recipe: its sections.
    :param measured: what a few updates told; None = nobody measured.
    """
    data, criterion = found.data, recipe["criterion"]["config"]
    num_steps, ema = recipe["regime"]["num_steps"], criterion["ema"]
    warmup = recipe["lr_scheduler"]["config"]["num_warmup_steps"]
    batch, batch_key = _describe_batch(data.modality, recipe["task"]["config"])
    time = (
        "" if measured is None else f", {measured.seconds:.2g} s each: {format_seconds(num_steps * measured.seconds)} and probes"
    )
    views, ratio = criterion["num_views"], criterion["masking"]["config"]["ratio"]

    return format_choices(
        [
            ("data", _describe_data(found), "data=FOLDER"),
            ("labels", _describe_labels(data), "probing.probes=[]"),
            ("model", _describe_model(recipe), "model.arch=…"),
            ("input", _describe_input(data, recipe["task"]["config"]), _INPUT_KEYS[data.modality]),
            ("method", f"data2vec 2.0, {views} views, {ratio:.0%} masked", "criterion.config.num_views=…"),
            ("batch", batch, batch_key),
            ("rate", f"{recipe['optimizer']['config']['lr']:g}, warm-up {warmup}, then a cosine", "optimizer.config.lr=…"),
            (
                "teacher",
                f"decay {ema['start']} to {ema['end']}, over {ema['anneal_steps']} of the run",
                "criterion.config.ema.end=…",
            ),
            ("length", f"{num_steps:,} updates{time}", "budget=30m or regime.num_steps=…"),
            ("machine", _describe_machine(machine, recipe, measured), "--device cpu|cuda"),
        ]
    ) + [f"note: {note}" for note in found.notes]


def format_choices(choices: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines of (what, the choice, the setting that changes it)."""
    width = max(len(what) for what, _, _ in choices)

    return [f"{what:<{width}}  {choice}   [{setting}]" for what, choice, setting in choices]


def _describe_data(found: Found) -> str:
    text = f"{found.data.size} of {found.source}"
    if found.report is None:
        return text
    number, path = len(found.report.dropped), found.data.path
    dropped = f"; {number:,} dropped, see {path / 'report.json'}" if number else ""

    return f"{text}, manifests in {path}{dropped}"


def _describe_labels(data: Data) -> str:
    if data.probe_split is None:
        return "none, so no probes; folders are classes if every file is in one"
    fitted, measured = data.num_probed

    return f"{data.num_classes} classes: probes are fitted on {fitted:,} samples and measured on {measured:,} held out"


def _describe_model(recipe: Mapping[str, Any]) -> str:
    config = read_model(recipe["model"])
    millions = count_parameters(config) / 1e6

    return f"{recipe['model']['arch']}, {config.dim} wide, {config.depth} blocks, {millions:.1f} M parameters"


def _describe_input(data: Data, task: Mapping[str, Any]) -> str:
    match data.modality:
        case Modality.AUDIO:
            rates = "other sample rates are converted to 16 kHz" if data.resample else "all at 16 kHz"
            return f"{rates}; recordings under {task['min_sample_size'] / 16_000:.2g} s are left out"
        case Modality.IMAGE:
            return f"{task['image']['size']} x {task['image']['size']} pixels (the shorter side has {data.side})"
        case Modality.TEXT:
            return f"samples of {task['tokens_per_sample']} tokens"


def _describe_batch(modality: Modality, task: Mapping[str, Any]) -> tuple[str, str]:
    """What an update reads, and the settings that change it."""
    if modality is Modality.AUDIO:
        seconds, crop = task["max_num_elements"] / 16_000, task["max_sample_size"] / 16_000
        return (
            f"{task['batches_per_update']} x {seconds:.3g} s of sound, crops of at most {crop:.2g} s",
            "task.config.max_num_elements=…",
        )
    size = task.get("max_batch_size")
    passes = "" if size is None else f", in passes of {size}"

    return f"{task['batch_size']} samples{passes}", "task.config.batch_size=…"


def _describe_machine(machine: Machine, recipe: Mapping[str, Any], measured: Calibration | None) -> str:
    memory = f"{estimate_memory(recipe, machine.device) / 2**30:.1f} GiB of memory estimated"
    if measured is not None and measured.peak:
        memory += f" ({measured.peak / 2**30:.1f} measured)"
    processes = f"{machine.num_processes} x " if machine.num_processes > 1 else ""

    return f"{processes}{machine.name}, {machine.num_cores} cores, {memory} of {machine.memory / 2**30:.0f}"
