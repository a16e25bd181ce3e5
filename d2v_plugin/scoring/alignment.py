"""Alignments of a CTC model: which symbol stands at which frame, and the words that these spell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp

import numpy as np
from numpy.typing import NDArray

from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.transcripts import WORD_END, WORD_START
from d2v_plugin.scoring.answers import Transcript, Word


@dataclass(frozen=True)
class Run:
    """A symbol at one or more neighbouring frames."""

    symbol: int
    start: int
    """Its first frame."""
    stop: int
    """The frame after its last."""
    log_prob: float
    """Summed over its frames."""


@dataclass
class _Spelled:
    """A word while it is put together."""

    text: str = ""
    runs: list[Run] = field(default_factory=list)


def find_runs(path: NDArray[np.int64], log_probs: NDArray[np.float32]) -> list[Run]:
    """The runs of an alignment: repeated symbols count once, blanks not at all.

    :param path: (S,) the symbol of each frame.
    :param log_probs: (S,) of these symbols.
    """
    if not len(path):
        return []
    starts = np.append(0, np.flatnonzero(path[1:] != path[:-1]) + 1)
    stops = np.append(starts[1:], len(path))
    sums = np.add.reduceat(log_probs.astype(np.float64), starts)
    said = path[starts] != 0
    columns = (path[starts][said], starts[said], stops[said], sums[said])

    return [Run(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def spell_words(runs: Sequence[Run], labels: LabelSet) -> list[Word]:
    """The words that runs spell; ``|`` ends a word, ``▁`` begins one."""
    found = [_Spelled()]
    for run in runs:
        text = labels.names[run.symbol].replace(WORD_END, " ").replace(WORD_START, " ")
        for number, part in enumerate(re.split(r"\s", text)):
            if number:
                found.append(_Spelled())
            if part:
                found[-1].text += part
                found[-1].runs.append(run)

    return [make_word(word.text, word.runs) for word in found if word.runs]


def make_word(text: str, runs: Sequence[Run]) -> Word:
    """:param runs: the symbols of the word, at least one."""
    return Word(text, runs[0].start, runs[-1].stop, mean_probability(runs))


def make_transcript(words: Sequence[Word], runs: Sequence[Run], log_probs: NDArray[np.float32]) -> Transcript:
    """
    :param runs: the symbols that are said.
    :param log_probs: (S,) of all symbols of the alignment; where there are blanks alone, they tell how sure the model is.
    """
    silence = exp(float(log_probs.mean(dtype=np.float64))) if len(log_probs) else 1.0
    confidence = mean_probability(runs) if runs else silence
    return Transcript(hypothesis=" ".join(word.text for word in words), confidence=confidence, words=words)


def mean_probability(runs: Sequence[Run]) -> float:
    """Geometric mean over the frames of runs."""
    return exp(sum(run.log_prob for run in runs) / sum(run.stop - run.start for run in runs))
