"""Scores of predictions against references; plain Python or NumPy in, one number out.

The formulas are short enough to stand here. All agree with scikit-learn, SciPy and jiwer, which published numbers are computed
with, also where a class is never predicted or has no sample (see the tests). Edit distances are those of ``editdistance``, which
fairseq2 brings.

A score of no sample at all is NaN. Two arguments of different length are a :class:`ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence

import editdistance
import numpy as np
from numpy.typing import ArrayLike, NDArray

from d2v_plugin.core.lazy import LazyModule

stats = LazyModule("scipy.stats")

Floats = NDArray[np.float64]


def accuracy(hypotheses: ArrayLike, references: ArrayLike) -> float:
    """The share of samples that are right.

    :param hypotheses: (N,) classes, as indices or names.
    """
    own, right = _pair(hypotheses, references)
    return float((own == right).mean()) if len(own) else float("nan")


def f1(hypotheses: ArrayLike, references: ArrayLike, positive: int | str = 1) -> float:
    """Harmonic mean of precision and recall of one class; 0 if it neither occurs nor is predicted.

    :param hypotheses: (N,) classes.
    """
    own, right = (side == positive for side in _pair(hypotheses, references))
    if not len(own):
        return float("nan")
    return 2.0 * float((own & right).sum()) / max(1, int(own.sum() + right.sum()))


def matthews(hypotheses: ArrayLike, references: ArrayLike) -> float:
    """Matthews' correlation of two or more classes; 0 if only one class is predicted or occurs.

    :param hypotheses: (N,) classes.
    """
    own, right = _pair(hypotheses, references)
    classes = np.union1d(own, right)

    # Correlation of the one-hot vectors, (N,) -> (N, C).
    return _correlate(own[:, None] == classes, right[:, None] == classes)


def accuracy_and_f1(hypotheses: ArrayLike, references: ArrayLike) -> float:
    """Mean of :func:`accuracy` and :func:`f1`; what models of GLUE's MRPC and QQP are chosen by."""
    return (accuracy(hypotheses, references) + f1(hypotheses, references)) / 2


def pearson_and_spearman(hypotheses: ArrayLike, references: ArrayLike) -> float:
    """Mean of :func:`pearson` and :func:`spearman`; what models of GLUE's STS-B are chosen by."""
    return (pearson(hypotheses, references) + spearman(hypotheses, references)) / 2


def pearson(hypotheses: ArrayLike, references: ArrayLike) -> float:
    """Linear correlation of numbers (N,); 0 if one side is constant."""
    own, right = _pair(hypotheses, references)
    return _correlate(own[:, None], right[:, None])


def spearman(hypotheses: ArrayLike, references: ArrayLike) -> float:
    """Correlation of the ranks of numbers (N,), equal numbers sharing their mean rank; 0 if one side is constant."""
    own, right = _pair(hypotheses, references)
    if np.isnan(own.astype(np.float64)).any():
        return float("nan")
    return _correlate(stats.rankdata(own)[:, None], stats.rankdata(right)[:, None])


def mean_average_precision(scores: ArrayLike, tags: ArrayLike) -> float:
    """Average precision (area under the precision-recall curve, without interpolation), mean over the tags that occur.

    :param scores: (N, C), more is likelier.
    :param tags: (N, C), whether each sample has each tag.
    """
    own, right = _pair(scores, tags)
    if not len(own):
        return float("nan")
    occurring = np.flatnonzero(right.any(axis=0))
    found = [_average_precision(own[:, tag].astype(np.float64), right[:, tag].astype(bool)) for tag in occurring]

    return float(np.mean(found)) if found else float("nan")


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Substituted, left out and added words of all samples over the words of all references; may exceed 1."""
    return _error_rate([text.split() for text in hypotheses], [text.split() for text in references])


def character_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """As :func:`word_error_rate`, of characters; spaces count, those at the ends do not."""
    return _error_rate([text.strip() for text in hypotheses], [text.strip() for text in references])


def _pair(hypotheses: ArrayLike, references: ArrayLike) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    own, right = np.asarray(hypotheses), np.asarray(references)
    if len(own) != len(right):
        raise ValueError(f"There are {len(own)} hypotheses for {len(right)} references; each needs its own.")
    return own, right


def _correlate(own: NDArray[np.generic], right: NDArray[np.generic]) -> float:
    """Covariance over deviations, (N, C) each, summed over C."""
    if not len(own):
        return float("nan")
    x, y = (side.astype(np.float64) - side.astype(np.float64).mean(axis=0) for side in (own, right))
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))

    return float((x * y).sum()) / scale if scale != 0.0 else 0.0


def _average_precision(scores: Floats, is_tagged: NDArray[np.bool_]) -> float:
    """Precision at each distinct score, weighted by how much recall grows there."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = is_tagged[order].cumsum()[ends]
    gains = np.diff(hits, prepend=0)

    return float((gains * hits / (ends + 1)).sum() / hits[-1])


def _error_rate(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    if len(hypotheses) != len(references):
        raise ValueError(f"There are {len(hypotheses)} hypotheses for {len(references)} references; each needs its own.")
    errors = sum(editdistance.eval(own, right) for own, right in zip(hypotheses, references, strict=True))
    size = sum(len(right) for right in references)

    return errors / size if size else float("nan")
