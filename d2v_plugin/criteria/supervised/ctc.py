"""Connectionist temporal classification (CTC): transcripts without alignment, as wav2vec 2.0 and data2vec are fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.core.ranges import Share
from d2v_plugin.criteria.supervised.base import SupervisedConfig
from d2v_plugin.criteria.supervised.feature_masks import FeatureMaskConfig
from d2v_plugin.criteria.supervised.frames import FrameCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.transcripts import is_blank_first, join_symbols
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.spectrograms import sees_spectrograms
from d2v_plugin.scoring.answers import Answer, Transcript
from d2v_plugin.scoring.ctc_decoding import BeamSearchConfig, BeamSearchDecoder, Decoder, GreedyDecoder
from d2v_plugin.scoring.predictions import Prediction, build_predictions
from d2v_plugin.scoring.scores import character_error_rate, word_error_rate


@dataclass(kw_only=True)
class CtcConfig(SupervisedConfig):
    """Settings of ``ctc``."""

    dropout: Share = 0.0
    """Dropout before the output layer."""

    masking: FeatureMaskConfig | None = field(default_factory=FeatureMaskConfig)
    """Features to hide in training; None = nothing."""

    beam_search: BeamSearchConfig | None = None
    """Search for words in evaluation; None = the best symbol of each frame is taken."""


class CtcCriterion(FrameCriterion):
    """A linear layer gives the probabilities of symbols and the blank at each frame; the loss is that of all alignments together.

    Losses are summed over utterances and counted by them (the original's ``sentence_avg``).
    """

    label_kinds = ("symbols",)

    score_names = ("wer", "cer")

    def __init__(self, config: CtcConfig) -> None:
        super().__init__(config, dropout=config.dropout, masking=config.masking)
        self.config = config
        self._decoder: Decoder | None = None

    @override
    def build(self, model: EncoderModel) -> None:
        if sees_spectrograms(model.config):
            raise ValueError(
                "`ctc` reads one frame after the other, but the model has patches of spectrograms; choose `audio_base`."
            )
        super().build(model)

    @override
    def set_labels(self, labels: LabelSet | None) -> None:
        if labels is None or not is_blank_first(labels):
            raise ValueError("the labels are no symbols of transcripts; set `task.name: speech_recognition`.")
        super().set_labels(labels)
        # Built with the first prediction: training need not wait for a large language model.
        self._decoder = None

    def compute_log_probs(self, model: EncoderModel, batch: Batch, step: StepInfo | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the symbols (N, S, C), float32, and how many frames count, (N,)."""
        logits, padding_mask = self.compute_logits(model, batch, step)
        log_probs, lengths = _normalize(logits, padding_mask)
        # The loss wants them on the host, which would wait there for the device in the middle of each update.
        known = model.count_tokens(batch.lengths, batch.modality)

        return log_probs, lengths if known is None else torch.tensor(known)

    @override
    def forward(self, model: EncoderModel, batch: Batch, step: StepInfo) -> LossOutput:
        losses = _compute_losses(*self.compute_log_probs(model, batch, step), batch)
        return LossOutput(losses.sum(), batch.num_examples)

    @property
    @override
    def answer_kls(self) -> type[Answer]:
        return Transcript

    @override
    def answer(self, logits: Tensor, padding_mask: Tensor | None) -> Sequence[Transcript]:
        assert self.labels is not None
        if self._decoder is None:
            search = self.config.beam_search
            self._decoder = GreedyDecoder(self.labels) if search is None else BeamSearchDecoder(search, self.labels)

        return self._decoder.decode_batch(*_normalize(logits, padding_mask))

    @override
    def compare(self, answers: Sequence[Answer], logits: Tensor, padding_mask: Tensor | None, batch: Batch) -> list[Prediction]:
        assert self.labels is not None
        symbols, num_symbols = _expect_transcripts(batch)
        references = [
            join_symbols(self.labels.names[symbol] for symbol in row[:count])
            for row, count in zip(symbols.tolist(), num_symbols.tolist(), strict=True)
        ]

        return build_predictions(batch.ids, _compute_losses(*_normalize(logits, padding_mask), batch), answers, references)

    @override
    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        hypotheses, references = ([str(getattr(row, side)) for row in predictions] for side in ("hypothesis", "reference"))
        return {"wer": word_error_rate(hypotheses, references), "cer": character_error_rate(hypotheses, references)}


def _normalize(logits: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, S, C), and how many frames count, (N,)."""
    lengths = torch.full((len(logits),), logits.size(1)) if padding_mask is None else (~padding_mask).sum(dim=1)

    return logits.log_softmax(dim=-1), lengths


def _compute_losses(log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """(N,) the negative log-likelihood of each transcript.

    Infinite losses are not set to zero: the task has refused recordings that are too short for their transcripts.
    """
    symbols, num_symbols = _expect_transcripts(batch)
    device = log_probs.device
    if torch.are_deterministic_algorithms_enabled():
        # CUDA's kernel adds in any order.
        log_probs, symbols = log_probs.cpu(), symbols.cpu()

    # (N, S, C) -> (S, N, C)
    return F.ctc_loss(log_probs.transpose(0, 1), symbols, lengths, num_symbols, blank=0, reduction="none").to(device)


def _expect_transcripts(batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.labels is None or batch.label_lengths is None:
        raise RuntimeError("The batch has no transcripts. Choose a task that reads them, such as `speech_recognition`.")
    return batch.labels, batch.label_lengths
