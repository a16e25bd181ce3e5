"""Evaluation of a fine-tuned model on a labelled split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import fairseq2.recipe  # noqa: F401  # fairseq2.evaluator cannot be imported before it
import torch
from fairseq2.evaluator import EvalUnit
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.metrics import Mean, MetricBag
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.storage import write_atomically
from d2v_plugin.core.text import escape_field
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.scoring.predictions import Prediction, gather_predictions, mean_loss


@final
class EvaluationUnit(EvalUnit[Batch]):
    """Scores the predictions of a model; the scores do not depend on the number of ranks that share the reading."""

    def __init__(
        self,
        model: EncoderModel,
        criterion: SupervisedCriterion[Any],
        gangs: Gangs,
        *,
        split: str,
        report: Path | None = None,
        locate: Callable[[int], str] | None = None,
    ) -> None:
        """
        :param model: the bare model, not its data-parallel wrapper.
        :param gangs: ``gangs.dp`` shares the reading.
        :param report: where predictions are written beside their references, one sample per line; None = nowhere.
        :param locate: tells where a row's sample lies, for that file; None = nobody knows.
        """
        self._model = model
        self._criterion = criterion
        self._gang = gangs.dp
        self._split = split
        self._report = report
        self._locate = locate or (lambda row: "")
        self._predictions: list[Prediction] = []
        self.scores: Mapping[str, float] = {}

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._predictions = []
        for name in ("loss", *self._criterion.score_names):
            metric_bag.add(name, Mean())

    @override
    @torch.no_grad()
    def process_batch(self, batch: Batch, metric_bag: MetricBag) -> None:
        was_training = self._model.training
        self._model.eval()
        try:
            self._predictions += self._criterion.predict(self._model, batch)
        finally:
            self._model.train(was_training)

    @override
    def finalize(self, metric_bag: MetricBag) -> None:
        """Bring the predictions of all ranks together and score them, on the first rank only."""
        predictions = gather_predictions(self._predictions, self._gang)
        self._predictions = []
        if self._gang.rank != 0:
            return

        # The main score first.
        self.scores = {**self._criterion.score(predictions), "loss": mean_loss(predictions)}
        for name, score in self.scores.items():
            metric_bag.get(name, Mean).update(score)

        if self._report is not None:
            table = "".join("\t".join(self._format_row(prediction)) + "\n" for prediction in predictions)
            try:
                write_atomically(self._report, "row\tprediction\treference\tconfidence\tpath\n" + table)
            except OSError as ex:  # scores are what a run needs; the next evaluation writes them again
                log.warning("{} cannot be written: {}.", self._report, ex.strerror or ex)

    def _format_row(self, prediction: Prediction) -> list[str]:
        shown, sure = self._criterion.format, prediction.confidence
        fields = [str(prediction.id), shown(prediction.hypothesis), shown(prediction.reference)]

        return [*fields, "" if sure is None else f"{sure:.4f}", escape_field(self._locate(prediction.id))]

    @property
    @override
    def name(self) -> str:
        return self._split
