"""Evaluation recipe: scores a fine-tuned model on labelled splits, and probes the features of any model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import fairseq2.recipe  # noqa: F401  # fairseq2.evaluator cannot be imported before it
import torch
from fairseq2.datasets import DataReader
from fairseq2.evaluator import Evaluator
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import wire_object
from fairseq2.task import Task as Runnable
from typing_extensions import override

from d2v_plugin.core.registry import create
from d2v_plugin.core.secrets import hide_in
from d2v_plugin.core.storage import write_atomically
from d2v_plugin.core.text import print_unwrapped
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.evaluation.run_scores import Scores, format_scores
from d2v_plugin.evaluation.unit import EvaluationUnit
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.families import create_model
from d2v_plugin.probing.section import Probing
from d2v_plugin.probing.table import format_accuracies
from d2v_plugin.probing.unit import ProbeUnit
from d2v_plugin.verbs.common import BASELINE_SEED, CheckpointRecipe, RecipeTask, open_task
from d2v_plugin.verbs.evaluate.config import EvaluateConfig
from d2v_plugin.weights.loading import load
from d2v_plugin.weights.run_folder import RunFolder
from d2v_plugin.weights.sources import find_provenance, find_source


@final
class EvaluateRecipe(CheckpointRecipe):
    """Evaluates a checkpoint; the scores do not depend on the number of processes."""

    config_kls = EvaluateConfig

    @override
    def create_task(self, context: RecipeContext) -> Runnable:
        config, gangs = context.get_config_as(EvaluateConfig), context.gangs
        path = config.checkpoint.choose()
        provenance = find_provenance(path)
        task = open_task(context, config.task, None if provenance is None else provenance.labels)
        open_split = task.create_labelled_reader

        criterion = None if config.criterion is None else create(context.resolver, Criterion, config.criterion)
        units: list[EvaluationUnit | ProbeUnit] = []
        readers: list[DataReader[Any]] = []
        model: EncoderModel
        if isinstance(criterion, SupervisedCriterion):
            # Data first: a missing split is known before a large model is read.
            readers += [open_split(gangs, split) for split in config.splits]
            model = load_trained(path, criterion, labels=task.labels, device=context.device)
            for split in config.splits:
                report = RunFolder(context.output_dir).predictions / f"{split}.tsv"
                locate = partial(task.locate, split)
                units.append(EvaluationUnit(model, criterion, gangs, split=split, report=report, locate=locate))
        elif config.probing.probes:
            model = load(path, weights=config.checkpoint.weights, device=context.device)
        else:
            raise RecipeError(f"{path} {_explain_unsupervised(config)}")

        if config.probing.probes:
            probing = Probing(context.resolver, config.probing, open_split)
            units.append(probing.create_unit(model, gangs))
            readers.append(probing.create_reader(gangs))
            if config.probing.baselines:
                units.append(probing.create_unit(create_untrained(path).to(context.device), gangs, name="random_init"))
                readers.append(probing.create_reader(gangs))
        task.check_model(model, config.splits if isinstance(criterion, SupervisedCriterion) else ())

        section = config.evaluator
        evaluator = wire_object(
            context.resolver,
            Evaluator,
            model=model,
            units=units,
            data_readers=readers,
            amp=section.amp,
            amp_dtype=section.amp_dtype,
            seed=config.common.seed + 3,
        )

        return EvaluateTask(evaluator, units, str(path), context.output_dir, gangs.root.rank == 0)


@final
@dataclass(eq=False)
class EvaluateTask(RecipeTask):
    """Runs an evaluator; then the first rank writes ``scores.json`` and prints a table."""

    inner: Evaluator = field()  # required, unlike the base class's
    units: Sequence[EvaluationUnit | ProbeUnit]
    checkpoint: str
    output_dir: Path
    is_first: bool

    @override
    def run(self) -> None:
        self.inner.run()
        if not self.is_first:
            return

        scores = {str(unit.name): dict(unit.scores) for unit in self.units}
        path = RunFolder(self.output_dir).scores
        write_atomically(path, json.dumps({"checkpoint": hide_in(self.checkpoint), "scores": scores}, indent=2) + "\n")
        print_unwrapped("\n".join([f"\n{self.checkpoint}", "", *_format(scores), f"scores:       {path}"]))
        reports = RunFolder(self.output_dir).predictions
        if reports.is_dir():
            print_unwrapped(f"predictions:  {reports}")


def create_untrained(path: str | Path) -> EncoderModel:
    """Create a randomly initialised model of a checkpoint's configuration, the same one every time."""
    config = find_source(path).config
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(BASELINE_SEED)

        return create_model(config)


def _format(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Lines of a table of what was predicted, and of one of probes."""
    probes = {name: row for name, row in scores.items() if all(score.startswith("probe_") for score in row)}
    predicted = {name: row for name, row in scores.items() if name not in probes}
    for lines in (format_scores(predicted) if predicted else [], format_accuracies(probes)):
        if lines:
            yield from (*lines, "")


def _explain_unsupervised(config: EvaluateConfig) -> str:
    if config.criterion is None:
        return "has no head that predicts labels. Name probes to measure its features: `probing.probes`."

    return (
        f"was trained by the criterion `{config.criterion.name}`, which predicts no labels. Name probes to measure its features: "
        "`probing.probes`; or give the checkpoint of a fine-tuning run."
    )
