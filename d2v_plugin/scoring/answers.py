"""Answers of a model: what it says of a sample, whether or not anybody knows what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Value = str | int | float | list[float] | list[int]
"""A transcript, a class, a number, or a row of scores."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of one sample; criteria of one's own return this class, those of the package one below it."""

    hypothesis: Value
    """What is scored."""

    confidence: float | None = None
    """How sure the model is, 0 to 1; None = it does not tell."""


@dataclass(frozen=True)
class Word:
    """A word of a transcript, and where it is said."""

    text: str

    start: int
    """Its first frame."""

    stop: int
    """The frame after its last."""

    confidence: float
    """Geometric mean of the probabilities of its symbols, over the frames that have one."""


@dataclass(frozen=True, kw_only=True)
class Transcript(Answer):
    """The words of a recording; the hypothesis is its text."""

    words: Sequence[Word]


@dataclass(frozen=True, kw_only=True)
class Ranking(Answer):
    """A class; the hypothesis is the best classes' indices, the best one first."""

    probabilities: Sequence[float]
    """(C,) of all classes."""


@dataclass(frozen=True, kw_only=True)
class Tagging(Answer):
    """Any number of tags; the hypothesis is the probability of each."""


@dataclass(frozen=True, kw_only=True)
class Estimate(Answer):
    """A number; the hypothesis."""
