"""Summary of a finished run: what the features are worth, and where everything lies."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from fairseq2.checkpoint import CheckpointDir
from fairseq2.gang import create_fake_gangs
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.recipe.base import RecipeContext
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.fairseq2_private import ModelHolder
from d2v_plugin.core.log import log
from d2v_plugin.core.remote import RemotePath, place
from d2v_plugin.core.storage import write_atomically
from d2v_plugin.core.text import print_unwrapped
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.dataset import ManifestDataset
from d2v_plugin.data.sentences import Sentences
from d2v_plugin.evaluation.run_scores import Scores, compare_checkpoints, format_scores
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.pictures.projector import name_samples, write_projector
from d2v_plugin.probing.section import Probing, ProbingSection
from d2v_plugin.probing.table import format_accuracies
from d2v_plugin.tasks.base import Task
from d2v_plugin.training.observers import Observer
from d2v_plugin.training.picture_recorder import PICTURES
from d2v_plugin.verbs.common import BASELINE_SEED
from d2v_plugin.verbs.own.plan_file import PLAN_FILE
from d2v_plugin.verbs.train.config import TrainConfig
from d2v_plugin.weights.loading import load_weights
from d2v_plugin.weights.run_folder import RunFolder


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

    inputs: str | None = None
    """In fine-tuning: the manifest or table that was scored, which can be predicted as well as any other."""

    probing: Mapping[str, str] = field(default_factory=dict)
    """Settings of the probes that differ from the defaults of ``recipe evaluate``, which does not know those of the run."""


@final
class Summarizer(Observer):
    """Measures what a finished run reached, on one process, and says it; on rank 0."""

    def __init__(self, context: RecipeContext, probing: Probing, task: Task[Any, Any]) -> None:
        """:param task: its modality is that of raw inputs, which are measured of images alone."""
        self._context = context
        self._probing = probing
        self._task = task

    @override
    def at_end(self, step_nr: int) -> None:
        output_dir = self._context.output_dir
        accuracies = self._measure() if self._probing.probes else {}
        self._write_projector()
        scores: dict[str, Scores] = {}
        paths = locate_results(output_dir, find_checkpoints(self._context))
        criterion = self._context.get_model_as(EncoderModel).criterion
        if isinstance(criterion, SupervisedCriterion):
            scores = read_scores(self._context, criterion)
            paths |= {"predictions": str(folder)} if (folder := RunFolder(output_dir).predictions).is_dir() else {}

        inputs = self._find_inputs() if scores else None
        summary = Summary(step_nr, accuracies, scores, paths, inputs, list_settings(self._probing.section))
        try:
            write_atomically(RunFolder(output_dir).summary, json.dumps(asdict(summary), indent=2) + "\n")
        except OSError as ex:
            log.warning("{} cannot be written: {}.", RunFolder(output_dir).summary, ex.strerror or ex)
        print_unwrapped(format_summary(summary))

    def _measure(self) -> dict[str, Mapping[str, float]]:
        probing, device = self._probing, self._context.device
        accuracies: dict[str, Mapping[str, float]] = {"pre-trained": probing.measure_model(self._find_model(), device)}
        if probing.section.baselines:
            accuracies["random init"] = probing.measure_model(create_random_model(self._context), device)
            if self._task.modality is Modality.IMAGE:
                accuracies["raw pixels"] = probing.measure_inputs(device)

        return accuracies

    def _find_inputs(self) -> str | None:
        dataset, (split, *_) = self._context.get_dataset(), self._context.get_config_as(TrainConfig).validation.splits

        if getattr(dataset, "parts", None):  # the same for multimodal datasets
            return None
        return str(dataset.split(split).path) if isinstance(dataset, ManifestDataset | Sentences) else None

    def _write_projector(self) -> None:
        num_samples, split = self._context.get_config_as(TrainConfig).pictures.num_embedded, self._probing.section.valid_split
        if num_samples == 0:
            return
        rows = self._task.open_rows(split)
        names = name_samples(self._context.get_dataset(), split, len(rows))
        folder, device = RunFolder(self._context.output_dir).tensorboard / PICTURES, self._context.device
        try:
            write_projector(folder, self._find_model().eval(), rows, num_samples, names=names, device=device)
        except OSError as ex:
            log.warning("The projector cannot be written: {}.", ex.strerror or ex)

    def _find_model(self) -> EncoderModel:
        """The trained model. A sharded one is read from the run's last checkpoint: its parts are spread over processes."""
        if self._context.gangs.sdp.size == 1:
            return self._context.get_model_as(EncoderModel)
        model = create_random_model(self._context)
        load_weights(model, find_checkpoints(self._context))

        return model


def list_settings(section: ProbingSection) -> dict[str, str]:
    """What probes see of samples, and of which, where it is not the default."""
    usual = ProbingSection()

    return {
        key: getattr(section, key)
        for key in ("train_split", "valid_split", "pooling")
        if getattr(section, key) != getattr(usual, key)
    }


def read_scores(context: RecipeContext, criterion: SupervisedCriterion[Any]) -> dict[str, Scores]:
    """Read what validation measured at the last and the best checkpoint."""
    known = {descriptor.name: descriptor.display_name for descriptor in context.resolver.collection.resolve(MetricDescriptor)}
    displayed = {known[name]: name for name in (*criterion.score_names, "loss") if name in known}
    splits = context.get_config_as(TrainConfig).validation.splits

    return compare_checkpoints(context.output_dir, find_checkpoints(context), splits, displayed)


def create_random_model(context: RecipeContext) -> EncoderModel:
    """Create a new model of the run's configuration, the same one in every run."""
    holder = context.resolver.resolve(ModelHolder, key="model")
    with torch.random.fork_rng():
        torch.manual_seed(BASELINE_SEED)
        gangs = create_fake_gangs(context.device)
        model = holder.family.create_new_model(holder.config, gangs, torch.float32, meta=False, init_rank0_only=True)
    assert isinstance(model, EncoderModel)

    return model


def find_checkpoints(context: RecipeContext) -> Path:
    """The folder of a run's checkpoints."""
    return place(context.resolver.resolve(CheckpointDir).path or RunFolder(context.output_dir).checkpoints)


def locate_results(output_dir: Path, checkpoints: Path) -> dict[str, str]:
    """Places of the results of a run, by what lies there; of those that exist."""
    run = RunFolder(output_dir)
    places = {
        "checkpoints": checkpoints,
        "metrics": run.metrics,
        "tensorboard": run.tensorboard,
        "pictures": run.pictures,
        "bad samples": run.bad_samples,
        "log": run.logs / "rank_0.log",
        "summary": run.summary,
    }

    # The summary is about to be written.
    return {name: str(path) for name, path in places.items() if path.exists() or path == run.summary}


def format_summary(summary: Summary) -> str:
    """The summary as small tables, a list of paths, and commands that go on from here."""
    lines = ["", f"Finished after {summary.num_updates:,} updates."]
    if summary.accuracies:
        lines += ["", *format_accuracies(summary.accuracies)]
    if summary.scores:
        lines += ["", *format_scores(summary.scores)]

    lines += ["", *(f"{name + ':':<13} {path}" for name, path in summary.paths.items())]
    lines += ["", "What comes next:", *(f"  {command}" for command in next_commands(summary))]

    return "\n".join(lines)


def next_commands(summary: Summary) -> Iterator[str]:
    """Yield commands that work on what the run has left."""
    checkpoints, output_dir = place(summary.paths["checkpoints"]), Path(summary.paths["summary"]).parent
    run = checkpoints.parent if checkpoints.name == "checkpoints" else checkpoints
    if isinstance(run, RemotePath) and checkpoints != run:
        output_dir = run  # where the local folder goes
    best = any(", best (" in name for name in summary.scores)

    def command(verb: str, place: str, *settings: str) -> str:
        words = ["fairseq2", "recipe", verb, f"{output_dir}_{place}", "--config", f"checkpoint.path={run}", *settings]
        return shlex.join(words)

    if "tensorboard" in summary.paths:
        yield shlex.join(["tensorboard", "--logdir", summary.paths["tensorboard"]])
    if summary.scores:
        chosen = ["checkpoint.best=true"] if best else []
        yield command("evaluate", "scores", *chosen)
        yield command("predict", "predictions", *chosen, f"inputs={summary.inputs or 'FILES'}")
        return  # tables of texts have no rows without labels, which features and pictures are made of
    if summary.accuracies:
        if (output_dir / PLAN_FILE).is_file():
            yield shlex.join(["fairseq2", "recipe", "finetune", f"{output_dir}_tuned", "--config", f"init.path={run}"])
        probing = [f"probing.{key}={value}" for key, value in summary.probing.items()]
        yield command("evaluate", "probes", "probing.probes=[{name: linear}]", "probing.layers=all", *probing)
    yield command("extract", "features")
    yield command("inspect", "pictures")
