"""Connectionist temporal classification (CTC): transcripts without alignment, as wav2vec 2.0 and data2vec are fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.criteria.supervised.base import SupervisedConfig
from d2v_plugin.criteria.supervised.feature_masks import FeatureMaskConfig, MaskedFineTuning
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.transcripts import is_blank_first, join_symbols
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.scoring.ctc_decoding import BeamSearchConfig, BeamSearchDecoder, Decoder, GreedyDecoder
from d2v_plugin.scoring.predictions import Prediction
from d2v_plugin.scoring.scores import character_error_rate, word_error_rate


@dataclass(kw_only=True)
class CtcConfig(SupervisedConfig):
    """Settings of ``ctc``."""

    dropout: float = 0.0
    """Dropout before the output layer."""

    masking: FeatureMaskConfig | None = field(default_factory=FeatureMaskConfig)
    """What is hidden in training; None = nothing."""

    beam_search: BeamSearchConfig | None = None
    """How words are searched for in evaluation; None = the best symbol of each frame is taken."""


class CtcCriterion(MaskedFineTuning):
    """A linear layer gives the probabilities of symbols and the blank at each frame; the loss is that of all alignments together.

    Losses are summed over utterances and counted by them (the original's ``sentence_avg``).
    """

    score_names = ("wer", "cer")
    head: nn.Linear

    def __init__(self, config: CtcConfig) -> None:
        super().__init__(config, config.masking)
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self._decoder: Decoder | None = None

    @override
    def set_labels(self, labels: LabelSet | None) -> None:
        if labels is None or not is_blank_first(labels):
            raise ValueError("the labels are no symbols of transcripts; set `task.name: speech_recognition`.")
        super().set_labels(labels)
        # Built with the first prediction: training need not wait for a large language model.
        self._decoder = None

    @override
    def build(self, model: EncoderModel) -> None:
        super().build(model)
        assert self.labels is not None
        with torch.device(next(model.parameters()).device):
            self.head = nn.Linear(model.config.dim, len(self.labels))  # type: ignore[arg-type]
            nn.init.xavier_uniform_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def compute_log_probs(self, model: EncoderModel, batch: Batch, step: StepInfo | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the symbols (N, S, C), float32, and how many frames count, (N,)."""
        features = self.encode(model, batch, step)
        log_probs = self.head(self.dropout(features.x)).float().log_softmax(dim=-1)
        num_samples, num_frames = features.x.shape[:2]
        if features.padding_mask is None:
            return log_probs, torch.full((num_samples,), num_frames, device=log_probs.device)

        return log_probs, (~features.padding_mask).sum(dim=1)

    @override
    def forward(self, model: EncoderModel, batch: Batch, step: StepInfo) -> LossOutput:
        losses = _compute_losses(*self.compute_log_probs(model, batch, step), batch)

        return LossOutput(losses.sum(), batch.num_examples)

    @override
    def predict(self, model: EncoderModel, batch: Batch) -> list[Prediction]:
        labels = self.labels
        assert labels is not None
        log_probs, lengths = self.compute_log_probs(model, batch)
        losses = _compute_losses(log_probs, lengths, batch)
        hypotheses = self._create_decoder(labels).decode_batch(log_probs, lengths)
        symbols, num_symbols = _expect_transcripts(batch)
        references = [
            join_symbols(labels.names[symbol] for symbol in row[:count])
            for row, count in zip(symbols.tolist(), num_symbols.tolist(), strict=True)
        ]

        return [
            Prediction(id, loss, 1, hypothesis, reference)
            for id, loss, hypothesis, reference in zip(batch.ids.tolist(), losses.tolist(), hypotheses, references, strict=True)
        ]

    @override
    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        hypotheses, references = ([str(getattr(row, side)) for row in predictions] for side in ("hypothesis", "reference"))

        return {"wer": word_error_rate(hypotheses, references), "cer": character_error_rate(hypotheses, references)}

    def _create_decoder(self, labels: LabelSet) -> Decoder:
        if self._decoder is None:
            search = self.config.beam_search
            self._decoder = GreedyDecoder(labels) if search is None else BeamSearchDecoder(search, labels)

        return self._decoder


def _compute_losses(log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """(N,) the negative log-likelihood of each transcript.

    Infinite losses are not set to zero: the task has refused recordings that are too short for their transcripts.
    """
    symbols, num_symbols = _expect_transcripts(batch)

    # (N, S, C) -> (S, N, C)
    return F.ctc_loss(log_probs.transpose(0, 1), symbols, lengths, num_symbols, blank=0, reduction="none")


def _expect_transcripts(batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.labels is None or batch.label_lengths is None:
        raise RuntimeError("The batch has no transcripts. Choose a task that reads them, such as `speech_recognition`.")

    return batch.labels, batch.label_lengths
