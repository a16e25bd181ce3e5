"""Pictures of masked text: the words of each view, legible under the tint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import Spell
from d2v_plugin.pictures.canvas import DPI, TINT, WIDTH
from d2v_plugin.pictures.inputs import find_length

FONT = FontProperties(family="DejaVu Sans Mono", size=11)  # comes with matplotlib
LETTER = 0.602 * 11 / 72
"""The width of a letter in inches; all are as wide."""

LINE = 0.24
LEFT, RIGHT, TOP = 0.9, 0.2, 0.6
COLUMNS = int((WIDTH - LEFT - RIGHT) / LETTER)
MAX_TOKENS = 64
MAX_BLOCKS = 6
BOUNDARY = "▁"
"""Begins the pieces that begin words."""


@dataclass
class Line:
    """A line of words, and which of its letters are tinted."""

    first: int
    """The place of its first token."""

    text: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """(first letter, how many)"""


def draw_words(batch: Batch, masks: Tensor, spell: Spell) -> Figure:
    """Draw the first tokens of each sample and view.

    :param masks: (N, M, S), True = masked.
    """
    views = masks[:, : max(1, MAX_BLOCKS // masks.size(0))]
    blocks: list[tuple[str, list[Line]]] = []
    for sample, ids in enumerate(batch.inputs.tolist()):
        length = min(find_length(batch, sample), MAX_TOKENS)
        for view, mask in enumerate(views[sample, :, :length].tolist(), start=1):
            title = f"Sample {int(batch.ids[sample])}, view {view}: {sum(mask)} of its first {length} tokens are masked"
            blocks.append((title, list(wrap(spell(ids[:length]), mask))))

    height = TOP + sum(_height_of(lines) for _, lines in blocks)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    figure.suptitle("What is masked in each view (tinted)", fontsize=14, y=1 - 0.15 / height, va="top")
    y = height - TOP
    for title, lines in blocks:
        bottom = y - _height_of(lines) + 0.15
        place = (LEFT / WIDTH, bottom / height, COLUMNS * LETTER / WIDTH, len(lines) * LINE / height)
        _write(figure.add_axes(place), title, lines)
        y -= _height_of(lines)

    return figure


def wrap(pieces: Sequence[str], mask: Sequence[bool]) -> Iterator[Line]:
    """Put pieces of words together, in lines of at most ``COLUMNS`` letters; spaces stand where words begin, if that is known."""
    knows_words = any(piece.startswith(BOUNDARY) for piece in pieces)
    line = Line(first=0)
    for place, (piece, is_masked) in enumerate(zip(pieces, mask, strict=True)):
        is_new = piece.startswith(BOUNDARY) or not knows_words
        # A boundary alone stays visible.
        word = piece.removeprefix(BOUNDARY)[: COLUMNS - 1] or BOUNDARY
        if line.text and len(line.text) + is_new + len(word) > COLUMNS:
            yield line
            line = Line(first=place)
        if line.text and is_new:
            line.text += " "
        if is_masked:
            line.spans.append((len(line.text), len(word)))
        line.text += word
    yield line


def _write(axes: Axes, title: str, lines: Sequence[Line]) -> None:
    font = get_font(findfont(FONT))
    for y, line in enumerate(lines):
        axes.broken_barh(line.spans, (y - 0.45, 0.9), facecolors=TINT)
        text = "".join(letter if font.get_char_index(ord(letter)) else "□" for letter in line.text)
        axes.text(0, y, text, fontproperties=FONT, va="center_baseline", parse_math=False)
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks(range(len(lines)), [str(line.first) for line in lines])
    axes.set_ylabel("Token")
    axes.set_title(title, loc="left", fontsize=12)
    axes.spines[:].set_visible(False)


def _height_of(lines: Sequence[Line]) -> float:
    return len(lines) * LINE + 0.55
