"""SpecAugment on the spectrograms themselves: one span of bands and one of frames of each recording are hidden in training.

Shares and places are drawn as ``torchaudio.transforms.FrequencyMasking`` and ``TimeMasking`` do with ``iid_masks``; hidden values
are the mean of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.random import Stream, uniform
from d2v_plugin.core.ranges import Share
from d2v_plugin.core.validation import Checked
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.data2vec2.frontends.spectrogram import SpectrogramFrontend
from d2v_plugin.models.data2vec2.model import Data2VecModel


@dataclass(kw_only=True)
class SpecAugmentConfig(Checked):
    """Parts of a spectrogram to hide; EAT hides up to 20 % of both on AudioSet, and 40 % on ESC-50."""

    bands: Share = 0.2
    """Most of the bands that are hidden, as a share; how many is uniform between none and these."""

    frames: Share = 0.2
    """The same of the frames of the recording."""


def find_spectrograms(model: EncoderModel) -> SpectrogramFrontend:
    """
    :raises ValueError: the model does not see spectrograms.
    """
    if isinstance(model, Data2VecModel) and Modality.AUDIO in model.config.frontends:
        frontend = model.frontend(Modality.AUDIO)
        if isinstance(frontend, SpectrogramFrontend):
            return frontend
    raise ValueError(
        "`spec_augment` hides parts of spectrograms, which the model does not see; choose an arch that does, such as "
        "`spectrogram_base`, or set `spec_augment: null`."
    )


def augment_spectrograms(model: EncoderModel, batch: Batch, step: StepInfo, config: SpecAugmentConfig) -> Batch:
    """Replace the waveforms of a batch by their spectrograms (N, F, B), of which parts are hidden."""
    frontend, keys = find_spectrograms(model), step.keys(batch.ids)
    spectrograms = frontend.compute_spectrogram(batch.inputs, batch.padding_mask)
    num_frames, num_bands = spectrograms.shape[1:]
    lengths = torch.full((len(keys), 1), num_frames, device=keys.device)
    if batch.padding_mask is not None:
        # Whole patches, as of a recording by itself.
        rows = frontend.config.count_tokens((~batch.padding_mask).sum(dim=1, keepdim=True)) // frontend.config.columns
        lengths = (rows * frontend.config.patch_size).clamp(max=num_frames)
    frames = draw_span(uniform(keys, 2, stream=Stream.HIDDEN_FRAMES), num_frames, lengths, config.frames)
    draws = uniform(keys, 2, stream=Stream.HIDDEN_BANDS)
    bands = draw_span(draws, num_bands, torch.full_like(lengths, num_bands), config.bands)

    return replace(batch, inputs=spectrograms.masked_fill(frames.unsqueeze(2) | bands.unsqueeze(1), 0.0))


def draw_span(draws: Tensor, size: int, lengths: Tensor, share: float) -> Tensor:
    """Place one span in every row, as long as anything up to ``share``: (R, size), True = in it.

    :param draws: (R, 2) from [0, 1): how long it is, and where it begins.
    :param lengths: (R, 1) how many positions of each row count; the span lies inside them.
    """
    length = draws[:, :1] * share * lengths
    start = (draws[:, 1:] * (lengths - length)).long()
    positions = torch.arange(size, device=draws.device)

    return (positions >= start) & (positions < start + length.long())
