"""The evaluation recipe: scores a fine-tuned model on labelled splits, and probes the features of any model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final

import torch
from fairseq2.datasets import DataReader
from fairseq2.evaluator import Evaluator
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import wire_object
from fairseq2.task import Task as Runnable
from typing_extensions import override

from d2v_plugin.core.registry import create
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.evaluation.provenance import find_provenance
from d2v_plugin.evaluation.run_scores import Scores, format_scores
from d2v_plugin.evaluation.unit import EvaluationUnit
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.families import create_model
from d2v_plugin.probing.section import Probing
from d2v_plugin.probing.table import format_accuracies
from d2v_plugin.tasks.base import Task
from d2v_plugin.verbs.common import BASELINE_SEED, choose_checkpoint
from d2v_plugin.verbs.evaluate.config import EvaluateConfig
from d2v_plugin.verbs.extensions import ExtensibleRecipe
from d2v_plugin.weights.loading import load
from d2v_plugin.weights.run_folder import RunFolder
from d2v_plugin.weights.sources import find_source


class ScoredUnit(Protocol):
    """What an evaluation unit offers besides fairseq2's."""

    scores: Mapping[str, float]
    """Filled on rank 0 by ``finalize``."""

    @property
    def name(self) -> str | None: ...


@final
class EvaluateRecipe(ExtensibleRecipe):
    """Evaluates a checkpoint; the scores do not depend on the number of processes."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return EvaluateConfig

    @override
    def create_task(self, context: RecipeContext) -> Runnable:
        config, gangs = context.get_config_as(EvaluateConfig), context.gangs
        assert config.checkpoint.path is not None and config.task is not None
        path = choose_checkpoint(config.checkpoint.path, best=config.checkpoint.best)
        provenance = find_provenance(path)

        task = create(context.resolver, Task, config.task).open(
            context.get_dataset(),
            report=RunFolder(context.output_dir).bad_samples,
            labels=None if provenance is None else provenance.labels,
        )
        open_split = task.create_labelled_reader

        criterion = None if config.criterion is None else create(context.resolver, Criterion, config.criterion)
        units: list[Any] = []
        readers: list[DataReader[Any]] = []
        model: EncoderModel
        if isinstance(criterion, SupervisedCriterion):
            # Data first: a missing split is known before a large model is read.
            readers += [open_split(gangs, split) for split in config.splits]
            model = load_trained(path, criterion, labels=task.labels, device=context.device)
            for split in config.splits:
                report = RunFolder(context.output_dir).predictions / f"{split}.tsv"
                units.append(EvaluationUnit(model, criterion, gangs, split=split, report=report))
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

        return EvaluateTask(evaluator, units, str(path), context.output_dir, is_first=gangs.root.rank == 0)


@final
class EvaluateTask(Runnable):
    """Runs an evaluator; then the first rank writes ``scores.json`` and prints a table."""

    def __init__(
        self, evaluator: Evaluator, units: Sequence[ScoredUnit], checkpoint: str, output_dir: Path, *, is_first: bool
    ) -> None:
        self._evaluator = evaluator
        self._units = units
        self._checkpoint = checkpoint
        self._output_dir = output_dir
        self._is_first = is_first

    @override
    def run(self) -> None:
        self._evaluator.run()
        if not self._is_first:
            return

        scores = {str(unit.name): dict(unit.scores) for unit in self._units}
        content = {"checkpoint": self._checkpoint, "scores": scores}
        path = RunFolder(self._output_dir).scores
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        # Not through the log, which breaks lines at the width of the terminal.
        print("\n".join([f"\n{self._checkpoint}", "", *_format(scores), f"scores:       {path}"]), flush=True)
        reports = RunFolder(self._output_dir).predictions
        if reports.is_dir():
            print(f"predictions:  {reports}", flush=True)

    @override
    def request_stop(self) -> None:
        self._evaluator.request_stop()

    @override
    def close(self) -> None:
        self._evaluator.close()

    @property
    @override
    def step_nr(self) -> int:
        return self._evaluator.step_nr


def create_untrained(path: str | Path) -> EncoderModel:
    """A randomly initialised model of a checkpoint's configuration, the same one every time."""
    config = find_source(path).config
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(BASELINE_SEED)

        return create_model(config)


def _format(scores: Mapping[str, Scores]) -> Iterator[str]:
    """A table for what was predicted, and one for probes."""
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
