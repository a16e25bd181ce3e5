"""Base of all objectives of fine-tuning: labels, freezing, predictions and scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.ranges import NonNegativeInt
from d2v_plugin.core.validation import Checked, ensure_valid
from d2v_plugin.criteria.base import Criterion, ModelT
from d2v_plugin.criteria.supervised.spec_augment import SpecAugmentConfig, augment_spectrograms, find_spectrograms
from d2v_plugin.data.labels import LabelKind, LabelSet
from d2v_plugin.models.base import Features
from d2v_plugin.scoring.answers import Answer, Value
from d2v_plugin.scoring.predictions import Prediction


@dataclass(kw_only=True)
class SupervisedConfig(Checked):
    """Settings of all objectives of fine-tuning."""

    freeze_frontend: bool = False
    """Keep the weights of what turns raw input into local features (convolutions, patch or token embedding)."""

    freeze_updates: NonNegativeInt = 0
    """Updates, from the start, that train the head alone. The encoder does not move at all then: it has no gradient, so that
    neither weight decay nor the optimizer's averages see it."""


class SupervisedCriterion(Criterion[ModelT], Generic[ModelT]):
    """A head on the encoder that is trained on labels; the head lives here, so that it is saved with the model."""

    score_names: Sequence[str] = ()
    """Names of the scores; each has a ``MetricDescriptor`` in :mod:`d2v_plugin.training`. The first is the main one."""

    label_kinds: Sequence[LabelKind] = ()
    """What it learns from; empty = it does not say, and any task may try."""

    framewise: bool = False
    """Whether the head's output at a frame depends on the features of that frame alone; long recordings are then computed in
    chunks without keeping their features."""

    spec_augment: SpecAugmentConfig | None = None
    """Parts of spectrograms to hide in training, for models that see some; None = nothing."""

    def __init__(self, config: SupervisedConfig) -> None:
        """
        :raises ValueError: the settings are not valid.
        """
        super().__init__()
        ensure_valid(config)
        self.supervised = config
        self.labels: LabelSet | None = None

    def set_labels(self, labels: LabelSet | None) -> None:
        """Say what is predicted; called before :meth:`build`, in training with what the task found in the dataset, in
        evaluation with what training had.

        :raises ValueError: these labels are nothing that this objective can predict.
        """
        self.labels = labels

    @override
    def build(self, model: ModelT) -> None:
        """Freeze what is not trained, whatever the update; subclasses create their head after that.

        :raises ValueError: spectrograms are to be hidden in part, and the model sees none.
        """
        if self.spec_augment is not None:
            find_spectrograms(model)
        model.frozen = (
            *self.unused_modules(model),
            *(model.frontend_modules if self.supervised.freeze_frontend else ()),
        )

    def unused_modules(self, model: ModelT) -> Sequence[str]:
        """Names of the modules and parameters of the model that get no gradient: those that serve pre-training alone."""
        return model.prediction_modules

    def encode(self, model: ModelT, batch: Batch, step: StepInfo | None = None) -> Features:
        """The encoder's features of a batch, with gradients unless it is frozen at this step.

        :param step: None = evaluation.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen(step)):
            if step is not None and self.spec_augment is not None:
                batch = augment_spectrograms(model, batch, step, self.spec_augment)
            return self.extract(model, batch, step)

    def extract(self, model: ModelT, batch: Batch, step: StepInfo | None) -> Features:
        """Encode a batch, whether it is frozen or not; objectives that mask features in training override this."""
        return model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality, lengths=batch.lengths)

    def is_frozen(self, step: StepInfo | None) -> bool:
        """Tell whether the head alone is trained in this update."""
        return step is not None and step.number <= self.supervised.freeze_updates

    def predict(self, model: ModelT, batch: Batch) -> list[Prediction]:
        """Predict each sample of a batch; the model is in evaluation mode, without gradients."""
        features = self.encode(model, batch)
        logits = self.apply_head(features)
        answers = self.answer(logits, features.padding_mask)
        if batch.labels is None:
            rows = zip(batch.ids.tolist(), answers, strict=True)
            return [Prediction(id, 0.0, 0, own.hypothesis, "", own.confidence) for id, own in rows]

        return self.compare(answers, logits, features.padding_mask, batch)

    @property
    def answer_kls(self) -> type[Answer]:
        """The class of the answers, which tells how the model is used: to transcribe, to classify, …"""
        return Answer

    @abstractmethod
    def apply_head(self, features: Features) -> Tensor:
        """Map the encoder's features to what the head puts out: (N, C), or (N, S, C) if it is :attr:`framewise`; float32."""

    @abstractmethod
    def answer(self, logits: Tensor, padding_mask: Tensor | None) -> Sequence[Answer]:
        """Say what the output of the head means, one answer for each sample; no labels are needed.

        :param logits: from :meth:`apply_head`.
        :param padding_mask: (N, S), True = padding; None = nothing is padded.
        """

    @abstractmethod
    def compare(self, answers: Sequence[Answer], logits: Tensor, padding_mask: Tensor | None, batch: Batch) -> list[Prediction]:
        """Put answers beside the labels of their batch, with the loss of each; parameters as for :meth:`answer`."""

    @abstractmethod
    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score a whole split.

        :param predictions: sorted by row, each sample once.
        :returns: a value for each of :attr:`score_names`.
        """

    def format(self, value: Value) -> str:
        """A hypothesis or a reference as it stands in the file of predictions, without tabs and line breaks."""
        return str(value)
