"""Alignments of a CTC model: which symbol stands at which frame, and the words that these spell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import exp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.transcripts import WORD_END, WORD_START
from d2v_plugin.scoring.answers import Transcript, Word


class Run(NamedTuple):
    """A symbol at one or more neighbouring frames."""

    symbol: int
    start: int
    """Its first frame."""
    stop: int
    """The frame after its last."""
    log_prob: float
    """Summed over its frames."""


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

    return list(map(Run._make, zip(*(column.tolist() for column in columns), strict=True)))


def split_labels(labels: LabelSet) -> list[list[str]]:
    """What each symbol adds to a text: letters for the word at hand, then those of a new word, and so on; ``|`` ends a word and
    ``▁`` begins one."""
    return [re.split(r"\s", name.replace(WORD_END, " ").replace(WORD_START, " ")) for name in labels.names]


def spell_words(runs: Sequence[Run], letters: Sequence[Sequence[str]]) -> list[Word]:
    """The words that runs spell.

    :param letters: from :func:`split_labels`.
    """
    words: list[Word] = []
    text, own = "", list[Run]()
    for run in runs:
        first, *others = letters[run.symbol]
        if first:
            text += first
            own.append(run)
        for part in others:
            if own:
                words.append(make_word(text, own))
            text, own = part, [run] if part else []
    if own:
        words.append(make_word(text, own))

    return words


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
    log_prob, num_frames = 0.0, 0
    for _, start, stop, own in runs:
        log_prob += own
        num_frames += stop - start

    return exp(log_prob / num_frames)
