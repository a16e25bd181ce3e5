"""Pictures of inputs: images, spectrograms, words; as they are, and with the masks of every view."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import Spell
from d2v_plugin.pictures.drawing import arrange, color, cover, magnify, write_words

IMAGE_SIDE = 96
STRIP_WIDTH, STRIP_HEIGHT = 480, 64
MAX_VIEWS = 8
MAX_STRIPS = 3
MAX_WORDS = 96


def draw_masks(batch: Batch, masks: Tensor, spell: Spell | None = None) -> Image.Image:
    """Each sample as it is, then what the student sees of it in its first views.

    :param masks: (N, M, S), True = masked.
    :param spell: for text; None = ids are shown.
    """
    masks = masks[:, :MAX_VIEWS].cpu()
    if batch.modality is Modality.TEXT:
        return write_words(_text_lines(batch.inputs, masks, spell or (lambda ids: [str(i) for i in ids])))

    show = show_image if batch.modality is Modality.IMAGE else show_waveform
    rows = []
    for sample, x, views in zip(batch.ids.tolist(), batch.inputs, masks, strict=True):
        shown = show(x)
        covered = [cover(shown, spread_mask(view, *shown.shape[1:], modality=batch.modality)) for view in views]
        if batch.modality is Modality.IMAGE:
            rows.append((f"sample {sample}: whole, and the masked views", [shown, *covered]))
        else:
            rows.append((f"sample {sample}: spectrogram, then masked views below it", [shown]))
            rows += [(f"view {i}", [cell]) for i, cell in enumerate(covered[:MAX_STRIPS])]

    return arrange(rows)


def show_image(x: Tensor) -> Tensor:
    """A normalised image as it looked, up to contrast: (C, H, W) -> (3, side, side) uint8."""
    x = x.detach().float().cpu()
    x = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-6) * 255
    x = x.expand(3, -1, -1) if x.size(0) == 1 else x[:3]

    return magnify(x.round().to(torch.uint8), IMAGE_SIDE, IMAGE_SIDE)


def show_waveform(x: Tensor) -> Tensor:
    """The log-magnitude spectrogram of a waveform at 16 kHz, low frequencies at the bottom: (T) -> (3, H, W) uint8."""
    x = x.detach().float().cpu()
    x = F.pad(x, (0, max(0, 512 - x.numel())))
    # 25 ms windows every 10 ms.
    spectrum = torch.stft(x, 512, hop_length=160, win_length=400, window=torch.hann_window(400), return_complex=True).abs()
    decibels = 20 * torch.log10(spectrum.clamp_min(1e-5))
    top = float(decibels.max())

    return magnify(color(decibels.flip(0), top - 70.0, top), STRIP_HEIGHT, STRIP_WIDTH)


def spread_mask(mask: Tensor, height: int, width: int, *, modality: Modality) -> Tensor:
    """Bring a mask over tokens to the size of a picture: (S) -> (height, width)."""
    shape = modality.grid_shape(mask.numel())
    grid = mask.view(shape if len(shape) == 2 else (1, -1))

    return magnify(grid.to(torch.uint8).expand(3, -1, -1), height, width)[0].bool()


def _text_lines(inputs: Tensor, masks: Tensor, spell: Spell) -> list[tuple[str, list[str], list[bool]]]:
    return [
        (f"sample {sample}, view {i} (what is masked in red)", spell(ids), view)
        for sample, (ids, views) in enumerate(zip(inputs[:, :MAX_WORDS].tolist(), masks[:, :, :MAX_WORDS], strict=True))
        for i, view in enumerate(views[:MAX_STRIPS].tolist())
    ]
