"""Small pictures from arrays: colours, magnified cells, captions. Fast enough to be drawn during training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN = 6
CAPTION_HEIGHT = 16
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
MASK_COLOUR = (225, 87, 89)

# From dark blue to yellow, equally bright steps.
_COLOURS = torch.tensor([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=torch.float32)


def colour(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Numbers as colours: (H, W) -> (3, H, W) uint8.

    :param low: what is darkest; None = the smallest number.
    :param high: what is brightest; None = the largest number.
    """
    x = x.detach().to("cpu", torch.float32)
    low = float(x.min()) if low is None else low
    high = float(x.max()) if high is None else high
    places = ((x - low) / max(high - low, 1e-12)).nan_to_num(0.0).clamp(0.0, 1.0) * (len(_COLOURS) - 1)
    below = places.floor().long().clamp_max(len(_COLOURS) - 2)
    share = (places - below).unsqueeze(-1)
    rgb = _COLOURS[below] * (1 - share) + _COLOURS[below + 1] * share

    return rgb.round().to(torch.uint8).permute(2, 0, 1)


def magnify(x: Tensor, height: int, width: int) -> Tensor:
    """Enlarge or shrink without smoothing: (3, h, w) -> (3, height, width)."""
    return F.interpolate(x[None].float(), size=(height, width), mode="nearest")[0].to(x.dtype)


def cover(image: Tensor, mask: Tensor, strength: float = 0.75) -> Tensor:
    """Paint over what is masked.

    :param image: (3, H, W) uint8
    :param mask: (H, W), True = masked.
    """
    paint = torch.tensor(MASK_COLOUR, dtype=torch.float32).view(3, 1, 1)
    covered = image.float() * (1 - strength) + paint * strength

    return torch.where(mask.cpu(), covered, image.float()).round().to(torch.uint8)


def to_image(x: Tensor) -> Image.Image:
    """(3, H, W) uint8 -> a picture."""
    return Image.fromarray(x.permute(1, 2, 0).contiguous().numpy())


def arrange(rows: Sequence[tuple[str, Sequence[Tensor]]]) -> Image.Image:
    """Rows of cells, each row with its caption above it.

    :param rows: captions and cells, (3, H, W) uint8 each; a row's cells have one height.
    """
    width = max(max(sum(cell.size(2) + MARGIN for cell in cells), 7 * len(caption)) for caption, cells in rows) + MARGIN
    height = sum(CAPTION_HEIGHT + max((cell.size(1) for cell in cells), default=0) + MARGIN for _, cells in rows) + MARGIN
    picture = Image.new("RGB", (width, height), BACKGROUND)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default()

    y = MARGIN
    for caption, cells in rows:
        pen.text((MARGIN, y), caption, fill=INK, font=font)
        y += CAPTION_HEIGHT
        x = MARGIN
        for cell in cells:
            picture.paste(to_image(cell), (x, y))
            x += cell.size(2) + MARGIN
        y += max((cell.size(1) for cell in cells), default=0) + MARGIN

    return picture


def write_words(lines: Sequence[tuple[str, Sequence[str], Sequence[bool]]], width: int = 900) -> Image.Image:
    """Text with coloured words, wrapped at ``width`` pixels.

    :param lines: captions, words, and which words are masked.
    """
    font = ImageFont.load_default()
    placed: list[tuple[int, int, str, bool | None]] = []
    x, y = MARGIN, MARGIN
    for caption, words, masked in lines:
        placed.append((MARGIN, y, caption, None))
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
    for x, y, word, state in placed:
        if state:
            pen.rectangle((x - 1, y, x + font.getlength(word) + 1, y + CAPTION_HEIGHT - 3), fill=MASK_COLOUR)
        pen.text((x, y), word, fill=BACKGROUND if state else INK, font=font)

    return picture
