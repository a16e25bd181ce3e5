"""Scores are those of scikit-learn, SciPy and jiwer."""

from __future__ import annotations

import math
from collections.abc import Callable

import jiwer
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from d2v_plugin.scoring.scores import (
    accuracy,
    accuracy_and_f1,
    character_error_rate,
    f1,
    matthews,
    mean_average_precision,
    pearson,
    pearson_and_spearman,
    spearman,
    word_error_rate,
)

SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes", [2, 5])
def test_scores_of_classes_are_those_of_scikit_learn(seed: int, num_classes: int) -> None:
    draw = np.random.default_rng(seed)
    size = int(draw.integers(2, 40))
    own, right = draw.integers(0, num_classes, size), draw.integers(0, num_classes, size)
    own[draw.random(size) < 0.3] = right[draw.random(size) < 0.3][:1].sum()

    assert accuracy(own, right) == pytest.approx(metrics.accuracy_score(right, own))
    assert matthews(own, right) == pytest.approx(metrics.matthews_corrcoef(right, own), abs=1e-12)
    expected = metrics.f1_score(right == 1, own == 1, zero_division=0.0)
    assert f1(own, right) == pytest.approx(expected)
    assert accuracy_and_f1(own, right) == pytest.approx((accuracy(own, right) + expected) / 2)


def test_classes_may_be_names() -> None:
    own, right = ["a", "b", "b", "c"], ["a", "b", "c", "c"]

    assert accuracy(own, right) == 0.75
    assert f1(own, right, positive="b") == pytest.approx(2 / 3)
    assert matthews(own, right) == pytest.approx(metrics.matthews_corrcoef(right, own))


@pytest.mark.parametrize("own", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_always_the_same_class_correlates_with_nothing(own: list[int]) -> None:
    assert matthews(own, [0, 1, 1, 0]) == 0.0
    assert pearson(own, [0.5, 1.0, 2.0, 4.0]) == spearman(own, [0.5, 1.0, 2.0, 4.0]) == 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_correlations_are_those_of_scipy(seed: int) -> None:
    draw = np.random.default_rng(seed)
    right = draw.integers(0, 6, 30) / 2.0  # many equal values
    own = right + draw.normal(size=30) * draw.random()
    if seed % 2:
        own = own.round()

    assert pearson(own, right) == pytest.approx(stats.pearsonr(own, right).statistic)
    assert spearman(own, right) == pytest.approx(stats.spearmanr(own, right).statistic)
    assert pearson_and_spearman(own, right) == pytest.approx((pearson(own, right) + spearman(own, right)) / 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_mean_average_precision_is_that_of_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    tags = draw.random((25, 4)) < [0.5, 0.1, 0.9, 0.3]
    tags[0] = True
    scores = draw.normal(size=(25, 4)) + tags
    if seed % 2:
        scores = scores.round()  # equal scores

    expected = metrics.average_precision_score(tags, scores, average="macro")

    assert mean_average_precision(scores, tags.astype(float)) == pytest.approx(expected)


def test_tags_that_no_sample_has_are_left_out_of_the_mean() -> None:
    assert mean_average_precision([[0.9, 0.1], [0.1, 0.9]], [[1, 0], [0, 0]]) == 1.0
    assert math.isnan(mean_average_precision([[0.9]], [[0]]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rate", "reference"), [(word_error_rate, jiwer.wer), (character_error_rate, jiwer.cer)])
def test_error_rates_are_those_of_jiwer(seed: int, rate: Callable[..., float], reference: Callable[..., float]) -> None:
    draw = np.random.default_rng(seed)

    def make(least: int) -> list[str]:
        return [" ".join(draw.choice(["a", "ab", "c", "äß"], int(draw.integers(least, 9)))) for _ in range(6)]

    right, own = make(1), make(0)

    assert rate(own, right) == pytest.approx(reference(right, own))


def test_spaces_between_words_are_no_errors_of_words() -> None:
    assert word_error_rate(["  one   two "], ["one two"]) == 0.0
    assert word_error_rate(["one two three four"], ["one"]) == 3.0


def test_a_score_of_nothing_is_nan_and_of_unpaired_samples_an_error() -> None:
    for score in (accuracy, f1, matthews, pearson, spearman, word_error_rate, character_error_rate):
        assert math.isnan(score([], []))
        with pytest.raises(ValueError, match="each needs its own"):
            score(["1"], ["1", "2"])
    assert math.isnan(mean_average_precision([], []))


def test_values_that_are_not_finite_do_not_look_like_a_result() -> None:
    assert math.isnan(pearson([1.0, math.nan], [1.0, 2.0])) and math.isnan(spearman([1.0, math.nan], [1.0, 2.0]))
