"""What a run says at its end: what the features are worth, and where everything lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import torch
from fairseq2.checkpoint import CheckpointDir
from fairseq2.gang import create_fake_gangs
from fairseq2.recipe.base import RecipeContext
from fairseq2.task import Task as Runnable
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.fairseq2_private import ModelHolder
from d2v_plugin.evaluation.run_scores import Scores
from d2v_plugin.evaluation.table import format_scores
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.pictures.recorder import Album
from d2v_plugin.probing.section import Probing
from d2v_plugin.probing.table import format_accuracies
from d2v_plugin.verbs.common import BASELINE_SEED, RecipeTask
from d2v_plugin.weights.loading import load_weights


@dataclass(frozen=True)
class Summary:
    """The end of a run; written to ``summary.json``."""

    num_updates: int
    """Updates done in all, over resumes."""

    accuracies: Mapping[str, Mapping[str, float]]
    """Accuracy of every probe, from 0 to 1, on: ``pre-trained``, ``random init``, ``raw pixels`` (what was measured)."""

    scores: Mapping[str, Mapping[str, float]]
    """In fine-tuning: scores by split and checkpoint, for the last and the best one."""

    paths: Mapping[str, str]
    """Where the results are."""


@final
class Summarizer:
    """Measures what a finished run reached."""

    def __init__(
        self, context: RecipeContext, probing: Probing, modality: Modality, compare: Callable[[], dict[str, Scores]] | None = None
    ) -> None:
        """
        :param compare: reads the scores of fine-tuning; None = there are none.
        """
        self._context = context
        self._probing = probing
        self._modality = modality
        self._compare = compare
        self.output_dir = context.output_dir

    def __call__(self, num_updates: int) -> Summary:
        """Called on rank 0 after the process group was closed: everything here happens on one process."""
        accuracies = self._measure() if self._probing.probes else {}
        scores = {} if self._compare is None else self._compare()
        paths = locate_results(self.output_dir)
        if self._compare is not None:
            paths["predictions"] = str(self.output_dir / "predictions")

        return Summary(num_updates, accuracies, scores, paths)

    def _measure(self) -> dict[str, Mapping[str, float]]:
        context, probing, device = self._context, self._probing, self._context.device
        accuracies: dict[str, Mapping[str, float]] = {}

        accuracies["pre-trained"] = probing.measure_model(self._find_model(), device)
        if probing.section.baselines:
            accuracies["random init"] = probing.measure_model(create_random_model(context), device)
            if self._modality is Modality.IMAGE:
                accuracies["raw pixels"] = probing.measure_inputs(device)

        return accuracies

    def _find_model(self) -> EncoderModel:
        """The trained model. A sharded one is read from the run's last checkpoint: its parts are spread over processes."""
        if self._context.gangs.sdp.size == 1:
            return self._context.get_model_as(EncoderModel)
        model = create_random_model(self._context)
        load_weights(model, self._context.resolver.resolve(CheckpointDir).path or self.output_dir)

        return model


def create_random_model(context: RecipeContext) -> EncoderModel:
    """A new model of the run's configuration, the same one in every run."""
    holder = context.resolver.resolve(ModelHolder, key="model")
    gangs = create_fake_gangs(context.device)

    with torch.random.fork_rng():
        torch.manual_seed(BASELINE_SEED)
        model = holder.family.create_new_model(holder.config, gangs, torch.float32, meta=False, init_rank0_only=True)

    assert isinstance(model, EncoderModel)

    return model


@final
class SummarizedTask(RecipeTask):
    """Runs a task and then says what it reached, on rank 0."""

    inner: Runnable

    def __init__(self, task: Runnable, summarize: Summarizer, *, rank: int, album: Album | None = None) -> None:
        """
        :param album: draws the pictures of the end; None = there are none.
        """
        self.inner = task
        self._summarize = summarize
        self._rank = rank
        self._album = album

    @override
    def run(self) -> None:
        self.inner.run()
        if self._rank != 0:
            return

        if self._album is not None:
            self._album.draw(self.step_nr)
        summary = self._summarize(self.step_nr)
        self._summarize.output_dir.joinpath("summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
        # Not through the log, which breaks lines at the width of the terminal.
        print(format_summary(summary), flush=True)


def locate_results(output_dir: Path) -> dict[str, str]:
    """Where a run in ``output_dir`` leaves its results."""
    return {
        "checkpoints": str(output_dir / "checkpoints"),
        "metrics": str(output_dir / "metrics"),
        "tensorboard": str(output_dir / "tb"),
        "pictures": str(output_dir / "pictures"),
        "summary": str(output_dir / "summary.json"),
    }


def format_summary(summary: Summary) -> str:
    """The summary as a small table and a list of paths."""
    lines = ["", f"Finished after {summary.num_updates:,} updates."]

    if summary.accuracies:
        lines += ["", *format_accuracies(summary.accuracies)]
    if summary.scores:
        lines += ["", format_scores(summary.scores)]

    lines += ["", *(f"{name + ':':<13} {path}" for name, path in summary.paths.items())]
    lines.append(f"Watch it with: tensorboard --logdir {summary.paths['tensorboard']}")
    if "predictions" in summary.paths:
        run = Path(summary.paths["checkpoints"]).parent
        best = " checkpoint.best=true" if any(", best (" in name for name in summary.scores) else ""
        lines.append(f"Score it with: fairseq2 recipe evaluate {run}/scores --config checkpoint.path={run}{best}")

    return "\n".join(lines)
