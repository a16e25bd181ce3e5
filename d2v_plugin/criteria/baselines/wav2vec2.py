"""wav2vec 2.0: tell the quantised features of a masked frame from those of other masked frames (arXiv 2006.11477, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from fairseq2.models.wav2vec2.vector_quantizer import GumbelWav2Vec2VectorQuantizer
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import ValidationResult
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, Observation, StepInfo, Views
from d2v_plugin.core.random import Stream, uniform
from d2v_plugin.core.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare, Share
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.criteria.baselines.base import ComparisonCriterion
from d2v_plugin.masking.spans_and_beit import SpanMaskSection
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec2.frontends.base import select_tokens
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.models.statistics import mean_valid


@dataclass(kw_only=True)
class Wav2Vec2Config(Checked):
    """Settings of ``wav2vec2``; the defaults are those of the base model on Librispeech."""

    masking: SpanMaskSection = field(default_factory=SpanMaskSection)
    """Selects the mask sampler; published are spans of 10 frames that would cover 65 % if they did not overlap."""

    num_codebooks: PositiveInt = 2
    """G: groups of the quantiser."""

    num_entries: PositiveInt = 320
    """V: entries of each codebook."""

    quantized_dim: PositiveInt = 256
    """Width of the quantised features; a multiple of ``num_codebooks``."""

    final_dim: PositiveInt = 256
    """Width in which predictions and targets are compared."""

    max_temperature: PositiveFloat = 2.0
    """Temperature of the Gumbel softmax at the first update."""

    min_temperature: PositiveFloat = 0.5
    """The lowest temperature."""

    temperature_decay: PositiveShare = 0.999995
    """Factor of the temperature per update."""

    num_distractors: PositiveInt = 100
    """Other masked frames of the same utterance that each target is told from, drawn with replacement."""

    logit_temperature: PositiveFloat = 0.1
    """Divisor of the cosine similarities."""

    diversity_weight: NonNegativeFloat = 0.1
    """Weight of the diversity loss. Its perplexity is that of one forward pass, as published: it depends on the batch."""

    feature_penalty: NonNegativeFloat = 10.0
    """Weight of the mean square of the local encoder's output."""

    feature_dropout: Share = 0.1
    """Dropout of the local features, on their ways to the encoder and to the quantiser."""

    @override
    def validate(self) -> ValidationResult:
        dim, groups = self.quantized_dim, self.num_codebooks

        return report(
            (
                groups > 0 and dim % groups != 0,
                f"`quantized_dim` must be a multiple of `num_codebooks` ({groups}), but is {dim}.",
            ),
            base=super().validate(),
        )


@dataclass
class Quantized:
    """Output of the quantiser for N·K frames."""

    x: Tensor
    """(N, K, Q) the chosen entries, those of the codebooks side by side."""

    codes: Tensor
    """(N, K, G) the number of the chosen entry of each codebook."""

    prob_perplexity: Tensor
    """Number of entries that are likely over the frames, of at most G·V."""

    code_perplexity: Tensor
    """Number of entries that are the most likely one, of at most G·V."""


class Wav2Vec2Criterion(ComparisonCriterion[Wav2Vec2Config]):
    """The objective of wav2vec 2.0; owns mask embedding, quantiser and projections.

    The quantiser is fairseq2's in parameters and initialisation. Its ``forward`` is not used: it counts its calls, which are
    not updates, draws from the global generator, waits for the device, and compiles code in the step.
    """

    modality = Modality.AUDIO
    metric_names = (
        *("contrastive_loss", "diversity_loss", "features_penalty"),
        *("accuracy", "prob_perplexity", "code_perplexity", "temperature", "masked_fraction"),
    )

    @override
    def build_head(self, model: Data2VecModel) -> None:
        config, audio = self.config, model.config.audio
        if audio is None:
            raise RecipeError("`wav2vec2` needs a model of waveforms (`audio`), but this one has none.")
        self.mask_embedding = nn.Parameter(torch.empty(model.config.dim))
        temperatures = (config.max_temperature, config.min_temperature, config.temperature_decay)
        self.quantizer = GumbelWav2Vec2VectorQuantizer(
            audio.conv_layers[-1][0], config.quantized_dim, config.num_codebooks, config.num_entries, temperatures
        )
        self.prediction_proj = nn.Linear(model.config.dim, config.final_dim)
        self.target_proj = nn.Linear(config.quantized_dim, config.final_dim)
        self.dropout = nn.Dropout(config.feature_dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.mask_embedding)

    @override
    def forward(
        self,
        model: Data2VecModel,
        batch: Batch,
        step: StepInfo,
        *,
        mask: Tensor | None = None,
        distractors: Tensor | None = None,
        gumbel_noise: Tensor | None = None,
    ) -> LossOutput:
        """
        :param mask: (N, S), True = masked, equally many in every row; None = drawn from (seed, step, sample id).
        :param distractors: (N, K, L) from 0 to K - 1, which masked frames of the same utterance; None = drawn likewise.
        :param gumbel_noise: (N, K, G, V); None = drawn likewise.
        """
        config, frontend = self.config, model.frontend()

        raw = frontend.encode_local(batch.inputs, batch.padding_mask)
        local = replace(frontend.project_local(raw, batch.padding_mask), lengths=model.count_tokens(batch.lengths))
        views = self.draw_views(model, batch, local, step, mask)
        masked = views.masked
        if distractors is None:
            distractors = draw_distractors(views.keys, masked.size(1), config.num_distractors)

        x = self._encode_masked(model, local, views)
        predictions = self.prediction_proj(select_tokens(x, masked))

        assert isinstance(frontend.project_features, nn.Sequential)
        features = self.dropout(frontend.project_features[:2](raw))  # normalised, not yet projected
        quantized = self.quantize(select_tokens(features, masked), views.keys, step.number, gumbel_noise)
        targets = self.target_proj(quantized.x)

        num_targets, num_entries = masked.numel(), config.num_codebooks * config.num_entries
        logits = self.compare(predictions, targets, quantized.codes, distractors)
        terms = {
            "contrastive_loss": F.cross_entropy(logits, logits.new_zeros(num_targets, dtype=torch.int64), reduction="sum"),
            # Statistics of the batch, not of a target: they count as often as there are targets, which the trainer divides by.
            "diversity_loss": (1 - quantized.prob_perplexity / num_entries) * num_targets * config.diversity_weight,
            "features_penalty": _mean_square(raw, local.padding_mask) * masked.size(1) * config.feature_penalty,
        }

        metrics = {name: term.detach() / num_targets for name, term in terms.items()}
        metrics["accuracy"] = (logits.detach().argmax(dim=-1) == 0).float().mean()
        metrics["prob_perplexity"] = quantized.prob_perplexity.detach()
        metrics["code_perplexity"] = quantized.code_perplexity
        metrics["temperature"] = torch.tensor(self.temperature_at(step.number))
        metrics["masked_fraction"] = torch.tensor(masked.size(1) / local.x.size(1))

        # Targets are codes, whose perplexity is a metric.
        observation = Observation(local.x.detach(), predictions=predictions.detach(), padding_mask=local.padding_mask)

        return LossOutput(torch.stack(list(terms.values())).sum(), num_targets, metrics, observation)

    def temperature_at(self, step_nr: int) -> float:
        """The temperature of update ``step_nr``, from 1; a function of the step alone."""
        config = self.config

        return max(config.max_temperature * config.temperature_decay ** (step_nr - 1), config.min_temperature)

    def quantize(self, x: Tensor, keys: Tensor, step_nr: int, gumbel_noise: Tensor | None = None) -> Quantized:
        """Choose one entry of each codebook for every frame: at random in training, the most likely one otherwise.

        :param x: (N, K, C)
        :param gumbel_noise: (N, K, G, V); None = drawn from ``keys``.
        """
        config = self.config
        # (N, K, C) -> (N, K, G·V) -> (N, K, G, V), probabilities in fp32
        logits = self.quantizer.entry_proj(x).float().unflatten(2, (config.num_codebooks, config.num_entries))
        likeliest = _one_hot(logits)

        if self.training:
            if gumbel_noise is None:
                gumbel_noise = draw_gumbel(keys, logits[0].numel()).view_as(logits)
            soft = ((logits + gumbel_noise) / self.temperature_at(step_nr)).softmax(dim=-1)
            hard = _one_hot(soft)
            # The value of the hard choice with the gradient of the soft one.
            choice = hard - soft.detach() + soft
        else:
            choice = hard = likeliest

        # (N, K, G, V), (G, V, Q/G) -> (N, K, G, Q/G) -> (N, K, Q)
        entries = self.quantizer.entries.view(config.num_codebooks, config.num_entries, -1)
        quantized = torch.einsum("nkgv,gve->nkge", choice.to(x.dtype), entries.to(x.dtype)).flatten(2)

        return Quantized(quantized, hard.argmax(dim=-1), _perplexity(logits.softmax(dim=-1)), _perplexity(likeliest))

    def _encode_masked(self, model: Data2VecModel, local: LocalFeatures, views: Views) -> Tensor:
        """The encoder's output at full length, (N, S, D)."""
        local = replace(local, x=self.dropout(local.x))

        return model.encode_whole(model.mask_local(local, views.mask, self.mask_embedding.to(local.x.dtype))).x

    def compare(self, predictions: Tensor, targets: Tensor, codes: Tensor, distractors: Tensor) -> Tensor:
        """Cosine similarities of each prediction with its target, which comes first, and its distractors, in fp32.

        All pairs are compared at once: a small matrix product instead of gathering L vectors for every frame.

        :returns: (N·K, 1 + L)
        """
        with torch.autocast(predictions.device.type, enabled=False):
            predictions, targets = (F.normalize(x.float(), dim=-1, eps=1e-8) for x in (predictions, targets))
            # (N, K, F), (N, K, F) -> (N, K, K)
            similarities = predictions @ targets.mT / self.config.logit_temperature

        # A distractor that equals the target is none.
        equal = (codes.unsqueeze(2) == codes.unsqueeze(1)).all(dim=-1)
        positive = similarities.diagonal(dim1=1, dim2=2).unsqueeze(-1)
        negative = similarities.masked_fill(equal, -torch.inf).gather(2, distractors)

        return torch.cat([positive, negative], dim=-1).flatten(0, 1)


def draw_distractors(keys: Tensor, num_frames: int, count: int) -> Tensor:
    """For each of K frames draw others, uniformly with replacement: (N, K, count) int64.

    :raises ValueError: there are no others.
    """
    if num_frames < 2:
        raise ValueError(f"At least 2 frames must be masked to tell them apart, but {num_frames} is; leave out shorter inputs.")
    draws = uniform(keys, num_frames * count, stream=Stream.DISTRACTORS).view(-1, num_frames, count)
    others = (draws * (num_frames - 1)).long()

    return others + (others >= torch.arange(num_frames, device=keys.device).view(-1, 1)).long()


def draw_gumbel(keys: Tensor, count: int) -> Tensor:
    """Draw (N, count) numbers from the standard Gumbel distribution."""
    # `uniform` has 24 bits; half of the smallest step keeps both logarithms finite.
    draws = uniform(keys, count, stream=Stream.GUMBEL).clamp_(min=2.0**-25)

    return draws.log_().neg_().log_().neg_()


def _one_hot(x: Tensor) -> Tensor:
    """1 at the largest number of the last dimension, 0 elsewhere."""
    return torch.zeros_like(x).scatter_(-1, x.detach().argmax(dim=-1, keepdim=True), 1.0)


def _perplexity(probabilities: Tensor) -> Tensor:
    """exp(entropy) of the mean over frames, summed over codebooks: (N, K, G, V) -> scalar."""
    mean = probabilities.flatten(0, 1).mean(dim=0)

    return torch.exp(-(mean * (mean + 1e-7).log()).sum(dim=-1)).sum()


def _mean_square(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Mean over the valid frames and channels of each sample, summed over samples, in fp32."""
    return mean_valid(x.float().square().mean(dim=-1), padding_mask).sum()
