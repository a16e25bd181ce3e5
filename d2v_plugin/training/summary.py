"""What a run says at its end: what the features are worth, and where everything lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import torch
from fairseq2.gang import create_fake_gangs
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.internal.model import _ModelHolder
from fairseq2.task import Task as Runnable
from typing_extensions import override

from d2v_plugin.data.batch import Modality
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.training.probing import Probing

# The baseline's weights are those of this seed in every run of an arch.
BASELINE_SEED = 1


@dataclass(frozen=True)
class Summary:
    """The end of a run; written to ``summary.json``."""

    num_updates: int
    """Updates done in all, over resumes."""

    accuracies: Mapping[str, Mapping[str, float]]
    """Accuracy of every probe, from 0 to 1, on: ``pre-trained``, ``random init``, ``raw pixels`` (what was measured)."""

    paths: Mapping[str, str]
    """Where the results are."""


@final
class Summarizer:
    """Measures what a finished run reached."""

    def __init__(self, context: RecipeContext, probing: Probing, modality: Modality) -> None:
        self._context = context
        self._probing = probing
        self._modality = modality
        self.output_dir = context.output_dir

    def __call__(self, num_updates: int) -> Summary:
        """Called on rank 0 after the process group was closed: everything here happens on one process."""
        return Summary(num_updates, self._measure() if self._probing.probes else {}, locate_results(self.output_dir))

    def _measure(self) -> dict[str, Mapping[str, float]]:
        context, probing, device = self._context, self._probing, self._context.device
        accuracies: dict[str, Mapping[str, float]] = {}

        # One process cannot gather the parameters of a sharded model; what validation measured stands in the log.
        if context.gangs.sdp.size == 1:
            accuracies["pre-trained"] = probing.measure_model(context.get_model_as(EncoderModel), device)

        if probing.section.baselines:
            accuracies["random init"] = probing.measure_model(create_random_model(context), device)
            if self._modality is Modality.IMAGE:
                accuracies["raw pixels"] = probing.measure(lambda batch: batch.inputs.flatten(1), device)

        return accuracies


def create_random_model(context: RecipeContext) -> EncoderModel:
    """A new model of the run's configuration, the same one in every run."""
    holder = context.resolver.resolve(_ModelHolder, key="model")
    gangs = create_fake_gangs(context.device)

    with torch.random.fork_rng():
        torch.manual_seed(BASELINE_SEED)
        model = holder.family.create_new_model(holder.config, gangs, torch.float32, meta=False, init_rank0_only=True)

    assert isinstance(model, EncoderModel)

    return model


@final
class SummarizedTask(Runnable):
    """Runs a task and then says what it reached, on rank 0."""

    def __init__(self, task: Runnable, summarize: Summarizer, *, rank: int) -> None:
        self._task = task
        self._summarize = summarize
        self._rank = rank

    @override
    def run(self) -> None:
        self._task.run()
        if self._rank != 0:
            return

        summary = self._summarize(self.step_nr)
        self._summarize.output_dir.joinpath("summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
        # Not through the log, which breaks lines at the width of the terminal.
        print(format_summary(summary), flush=True)

    @override
    def request_stop(self) -> None:
        self._task.request_stop()

    @override
    def close(self) -> None:
        self._task.close()

    @property
    @override
    def step_nr(self) -> int:
        return self._task.step_nr


def locate_results(output_dir: Path) -> dict[str, str]:
    """Where a run in ``output_dir`` leaves its results."""
    return {
        "checkpoints": str(output_dir / "checkpoints"),
        "metrics": str(output_dir / "metrics"),
        "tensorboard": str(output_dir / "tb"),
        "summary": str(output_dir / "summary.json"),
    }


def format_summary(summary: Summary) -> str:
    """The summary as a small table and a list of paths."""
    lines = ["", f"Finished after {summary.num_updates:,} updates."]

    if summary.accuracies:
        probes = list(next(iter(summary.accuracies.values())))
        width = max(len(name) for name in ("accuracy", *summary.accuracies))
        lines += ["", f"{'accuracy':<{width}}" + "".join(f"  {probe:>12}" for probe in probes)]
        for name, accuracies in summary.accuracies.items():
            lines.append(f"{name:<{width}}" + "".join(f"  {accuracies[probe]:>12.3f}" for probe in probes))

    lines += ["", *(f"{name + ':':<13} {path}" for name, path in summary.paths.items())]
    lines.append(f"Watch it with: tensorboard --logdir {summary.paths['tensorboard']}")

    return "\n".join(lines)
