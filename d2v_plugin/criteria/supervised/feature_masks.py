"""Masks of fine-tuning: spans of frames and of channels are hidden, so that the labels are not learned by heart.

This is SpecAugment on the features of the frontend (wav2vec 2.0, section 4.3). Unlike in pre-training each recording masks as
much as befits its own length, and what is drawn does not depend on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.random import Stream, gaussian, uniform
from d2v_plugin.core.ranges import NonNegativeFloat, PositiveInt, Share
from d2v_plugin.core.validation import Checked
from d2v_plugin.models.base import EncoderModel, Features


@dataclass(kw_only=True)
class FeatureMaskConfig(Checked):
    """Features to hide while a model is fine-tuned; the defaults are those of 100 hours of speech."""

    probability: Share = 0.65
    """The share of frames in spans if these did not overlap (they do: half of the frames or so); 0 = none."""

    length: PositiveInt = 10
    """Length of a span, in frames."""

    channel_probability: Share = 0.5
    """The same for channels, which are 0 over the whole recording; 0 = none."""

    channel_length: PositiveInt = 64
    """Length of a span of channels."""

    noise_std: NonNegativeFloat = 0.01
    """Deviation of the Gaussian noise at masked frames of data2vec 2.0; 0 = zeros (the original's ``zero_mask``). In 1.0 the
    embedding learned in pre-training stands there."""


def extract_masked(model: EncoderModel, batch: Batch, step: StepInfo, config: FeatureMaskConfig) -> Features:
    """The features of a batch of recordings of which a part is hidden.

    :param model: with a frontend for audio.
    """
    local = model.extract_local(batch.inputs, batch.padding_mask, modality=Modality.AUDIO, lengths=batch.lengths)
    keys = step.keys(batch.ids)
    frames = draw_frame_mask(keys, local.x.size(1), local.padding_mask, config)
    fill = None if model.has_mask_embedding else _draw_noise(step, batch.ids, local.x, config.noise_std)
    local = model.mask_local(local, frames, fill)

    return model.encode_whole(replace(local, x=hide_channels(local.x, keys, config)))


def draw_frame_mask(keys: Tensor, num_frames: int, padding_mask: Tensor | None, config: FeatureMaskConfig) -> Tensor:
    """Choose the frames to hide.

    :param keys: (N,) from :meth:`d2v_plugin.core.contracts.StepInfo.keys`.
    :param padding_mask: (N, S), True = padding.
    :returns: (N, S), True = hidden; never padding, and never all of a recording.
    """
    if padding_mask is None:
        lengths = torch.full((keys.size(0), 1), num_frames, device=keys.device)
    else:
        lengths = (~padding_mask).sum(dim=1, keepdim=True)
    rounding = uniform(keys, 1, stream=Stream.NUM_FRAME_SPANS)
    ranks = uniform(keys, num_frames, stream=Stream.FRAMES)

    return draw_spans(ranks, rounding, lengths, config.probability, config.length, at_least=int(config.probability > 0.0))


def hide_channels(x: Tensor, keys: Tensor, config: FeatureMaskConfig) -> Tensor:
    """Set spans of channels to zero in all frames of a recording: (N, S, D) -> (N, S, D)."""
    num_channels = x.size(-1)
    lengths = torch.full((keys.size(0), 1), num_channels, device=keys.device)
    rounding = uniform(keys, 1, stream=Stream.NUM_CHANNEL_SPANS)
    ranks = uniform(keys, num_channels, stream=Stream.CHANNELS)
    channels = draw_spans(ranks, rounding, lengths, config.channel_probability, config.channel_length, at_least=0)

    return x.masked_fill(channels.unsqueeze(1), 0.0)


def draw_spans(
    ranks: Tensor, rounding: Tensor, lengths: Tensor, probability: float, span_length: int, *, at_least: int
) -> Tensor:
    """Choose spans with different starts, as many as ``probability`` says, rounded at random.

    :param ranks: (R, S) random numbers; the smallest are where spans start.
    :param rounding: (R, 1) random numbers in [0, 1).
    :param lengths: (R, 1) how many positions of each row count; spans lie inside them.
    :param at_least: fewest spans of a row. Rows that one span would cover have none.
    :returns: (R, S), True = in a span.
    """
    positions = torch.arange(ranks.size(1), device=ranks.device)
    # In double precision, which every device rounds alike.
    num_spans = (lengths * probability / span_length + rounding.double()).long().clamp_(min=at_least)
    num_spans = num_spans.masked_fill(lengths <= span_length, 0)

    # A stable order makes the position decide between equal numbers.
    ranks = ranks.masked_fill(positions > lengths - span_length, 2.0)
    is_start = ranks.argsort(dim=1, stable=True).argsort(dim=1, stable=True) < num_spans
    is_start &= positions <= lengths - span_length

    # A position is in a span if one of the last `span_length` positions is a start.
    num_started = is_start.long().cumsum(dim=1)
    num_ended = torch.nn.functional.pad(num_started, (span_length, 0))[:, : ranks.size(1)]

    return num_started > num_ended


def _draw_noise(step: StepInfo, ids: Tensor, x: Tensor, std: float) -> Tensor:
    """Noise (N, S, D) that depends on sample and frame, not on how far the batch is padded; a scalar 0 without deviation."""
    if std == 0.0:
        return x.new_zeros(())
    # Frames take the part of views.
    keys = step.keys(ids, num_views=x.size(1))
    return gaussian(keys, x.size(2), stream=Stream.FRAME_NOISE, std=std).view(x.shape).to(x.dtype)
