"""Drawing: small pictures from arrays, fast enough for training: colors, magnified cells, captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_segmentation_masks

MARGIN = 6
CAPTION_HEIGHT = 16
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
MASK_COLOR = (225, 87, 89)

# From dark blue to yellow, equally bright steps.
_COLORS = torch.tensor([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=torch.float32)


def color(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Numbers as colors: (H, W) -> (3, H, W) uint8.

    :param low: what is darkest; None = the smallest number.
    :param high: what is brightest; None = the largest number.
    """
    x = x.detach().to("cpu", torch.float32)
    low = float(x.min()) if low is None else low
    high = float(x.max()) if high is None else high
    places = ((x - low) / max(high - low, 1e-12)).nan_to_num(0.0).clamp(0.0, 1.0) * (len(_COLORS) - 1)
    below = places.floor().long().clamp_max(len(_COLORS) - 2)
    rgb = torch.lerp(_COLORS[below], _COLORS[below + 1], (places - below).unsqueeze(-1))

    return rgb.round().to(torch.uint8).permute(2, 0, 1)


def magnify(x: Tensor, height: int, width: int) -> Tensor:
    """Enlarge or shrink without smoothing: (3, h, w) -> (3, height, width)."""
    return F.interpolate(x[None].float(), size=(height, width), mode="nearest")[0].to(x.dtype)


def cover(image: Tensor, mask: Tensor, strength: float = 0.75) -> Tensor:
    """Paint over what is masked.

    :param image: (3, H, W) uint8
    :param mask: (H, W), True = masked.
    """
    covered: Tensor = draw_segmentation_masks(image, mask.cpu(), alpha=strength, colors=MASK_COLOR)

    return covered


def arrange(rows: Sequence[tuple[str, Sequence[Tensor]]]) -> Image.Image:
    """Rows of cells, each row with its caption above it.

    :param rows: captions and cells, (3, H, W) uint8 each; a row's cells have one height.
    """
    width = max(max(sum(cell.size(2) + MARGIN for cell in cells), 7 * len(caption)) for caption, cells in rows) + MARGIN
    height = sum(CAPTION_HEIGHT + cells[0].size(1) + MARGIN for _, cells in rows) + MARGIN
    picture = Image.new("RGB", (width, height), BACKGROUND)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default()

    y = MARGIN
    for caption, cells in rows:
        pen.text((MARGIN, y), caption, fill=INK, font=font)
        y += CAPTION_HEIGHT
        x = MARGIN
        for cell in cells:
            picture.paste(to_pil_image(cell), (x, y))
            x += cell.size(2) + MARGIN
        y += cells[0].size(1) + MARGIN

    return picture


def write_words(lines: Sequence[tuple[str, Sequence[str], Sequence[bool]]], width: int = 900) -> Image.Image:
    """Text with colored words, wrapped at ``width`` pixels.

    :param lines: captions, words, and which words are masked.
    """
    font = ImageFont.load_default()
    placed: list[tuple[int, int, str, bool]] = []
    y = MARGIN
    for caption, words, masked in lines:
        placed.append((MARGIN, y, caption, False))
        x, y = MARGIN, y + CAPTION_HEIGHT
        for word, is_masked in zip(words, masked, strict=True):
            step = int(font.getlength(word)) + 4
            if x + step > width - MARGIN:
                x, y = MARGIN, y + CAPTION_HEIGHT
            placed.append((x, y, word, is_masked))
            x += step
        y += CAPTION_HEIGHT + MARGIN

    picture = Image.new("RGB", (width, y), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for x, y, word, is_masked in placed:
        if is_masked:
            pen.rectangle((x - 1, y, x + font.getlength(word) + 1, y + CAPTION_HEIGHT - 3), fill=MASK_COLOR)
        pen.text((x, y), word, fill=BACKGROUND if is_masked else INK, font=font)

    return picture
