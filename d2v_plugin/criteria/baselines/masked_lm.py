"""Masked language modelling (BERT, arXiv 1810.04805) with RoBERTa's head."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq2.utils.validation import ValidationResult
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo, Views
from d2v_plugin.core.ranges import NonNegativeInt, Probability
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.criteria.baselines.base import ComparisonCriterion
from d2v_plugin.masking.base import MaskSection
from d2v_plugin.masking.drawing import draw_views
from d2v_plugin.masking.tokens import check_shares, corrupt_tokens
from d2v_plugin.models.data2vec2.frontends.base import select_tokens
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.models.tokens import TokenEmbedding


@dataclass(kw_only=True)
class MaskedLMMaskSection(MaskSection):
    """Selects the mask sampler; published is ``random`` with 15 %."""

    name: str = "random"

    config: object = field(default_factory=lambda: {"ratio": 0.15})


@dataclass(kw_only=True)
class MaskedLMConfig(Checked):
    """Settings of ``masked_lm``; the defaults are those of BERT and RoBERTa."""

    masking: MaskedLMMaskSection = field(default_factory=MaskedLMMaskSection)
    """Selects the mask sampler, which draws the predicted positions."""

    random_tokens: Probability = 0.1
    """Share of the predicted positions that get a random token instead of ``<mask>``."""

    kept_tokens: Probability = 0.1
    """Share of the predicted positions that keep their token."""

    mask_idx: NonNegativeInt | None = None
    """Token id of ``<mask>``; None = the last of the vocabulary."""

    num_special_tokens: NonNegativeInt = 4
    """Smaller ids are never put in as random tokens."""

    @override
    def validate(self) -> ValidationResult:
        return report(check_shares(self.random_tokens, self.kept_tokens), base=super().validate())


class MaskedLMCriterion(ComparisonCriterion[MaskedLMConfig]):
    """The objective of BERT; owns the head."""

    modality = Modality.TEXT
    metric_names = ("accuracy", "masked_fraction")
    head: LMHead

    @override
    def build_head(self, model: Data2VecModel) -> None:
        assert model.config.text is not None
        vocab_size = model.config.text.vocab_size
        self.mask_idx = vocab_size - 1 if self.config.mask_idx is None else self.config.mask_idx
        if not 0 <= self.mask_idx < vocab_size:
            raise ValueError(f"`mask_idx` must be a token id below `vocab_size` ({vocab_size}), but is {self.mask_idx}.")
        if not 0 <= self.config.num_special_tokens < vocab_size - 1:
            raise ValueError(
                f"`num_special_tokens` must leave words in a vocabulary of {vocab_size}, but is {self.config.num_special_tokens}."
            )
        self.head = LMHead(model.config.dim, vocab_size)

    @override
    def forward(
        self,
        model: Data2VecModel,
        batch: Batch,
        step: StepInfo,
        *,
        mask: Tensor | None = None,
        corrupted: Tensor | None = None,
    ) -> LossOutput:
        """
        :param mask: (N, S), True = predicted, equally many in every row; None = drawn from (seed, step, sample id).
        :param corrupted: (N, S) what the model sees; None = drawn likewise.
        """
        tokens = batch.inputs
        views = draw_views(self.sampler, step, batch, tokens.size(1), batch.padding_mask, mask=mask)
        if corrupted is None:
            corrupted = self._corrupt(tokens, views)

        x = model.extract_features(corrupted, batch.padding_mask, lengths=batch.lengths).x
        x = select_tokens(x, views.masked)
        embedding = model.frontend().local_encoder
        assert isinstance(embedding, TokenEmbedding)
        # (N, K, V) -> (N·K, V)
        logits = self.head(x, embedding.embed_tokens.weight).flatten(0, 1).float()
        targets = tokens.gather(1, views.masked).flatten()
        loss = F.cross_entropy(logits, targets, reduction="sum")

        metrics = {
            "accuracy": (logits.detach().argmax(dim=-1) == targets).float().mean(),
            "masked_fraction": torch.tensor(views.masked.size(1) / tokens.size(1)),
        }

        return LossOutput(loss, views.masked.numel(), metrics)

    def _corrupt(self, tokens: Tensor, views: Views) -> Tensor:
        """(N, S): ``<mask>``, a random or the original token at the predicted positions."""
        config, mask = self.config, views.mask
        vocab_size = self.head.bias.numel()
        # `<mask>` is no word; where it is not the last of the vocabulary, fairseq takes the chance.
        end = vocab_size - 1 if self.mask_idx == vocab_size - 1 else vocab_size

        return corrupt_tokens(
            tokens.masked_fill(mask, self.mask_idx),
            tokens,
            mask,
            views.keys,
            words=(config.num_special_tokens, end),
            random_share=config.random_tokens,
            kept_share=config.kept_tokens,
        )


class LMHead(nn.Module):
    """Linear layer, GELU, norm, then the token embeddings as output weights."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.bias = nn.Parameter(torch.empty(vocab_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """
        :param x: (..., D)
        :param embedding: (V, D), shared with the input.
        :returns: (..., V)
        """
        return F.linear(self.norm(F.gelu(self.dense(x))), embedding, self.bias)
