"""Measures of representations against the formulas of their papers, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from d2v_plugin.core.contracts import Observation
from d2v_plugin.models.statistics import alpha_req, lidar, rank_me
from d2v_plugin.training.health.collapse import CollapseObserver


def effective_number(values: np.ndarray) -> float:
    """exp of the entropy as RankMe and LiDAR write it, in natural logarithms."""
    total, entropy = sum(map(abs, values)), 0.0
    for value in values:
        share = abs(value) / total + 1e-7
        entropy -= share * math.log(share)

    return math.exp(entropy)


@pytest.mark.parametrize("shape", [(50, 12), (12, 50)])
def test_rankme_is_that_of_its_paper(shape: tuple[int, int]) -> None:
    x = torch.randn(shape) * torch.linspace(0.1, 3.0, shape[1]) + 1.0

    assert rank_me(x) == pytest.approx(effective_number(np.linalg.svd(x.double().numpy())[1]), rel=1e-9)
    # Equal singular values count as many as there are.
    assert rank_me(torch.eye(8)) == pytest.approx(8.0, rel=1e-5)


@pytest.mark.parametrize(("samples", "views", "dim"), [(6, 4, 5), (4, 2, 20)])
def test_lidar_is_the_effective_rank_of_the_matrix_of_its_paper(samples: int, views: int, dim: int) -> None:
    x = torch.randn(samples, 1, dim).double() + 0.3 * torch.randn(samples, views, dim).double()
    means, mean = x.mean(dim=1), x.mean(dim=(0, 1))
    between = sum(torch.outer(c - mean, c - mean) for c in means) / samples
    within = sum(torch.outer(v - c, v - c) for c, row in zip(means, x, strict=True) for v in row) / (samples * views)
    values, vectors = np.linalg.eigh((within + 1e-4 * torch.eye(dim)).numpy())
    root = vectors @ np.diag(values**-0.5) @ vectors.T

    assert lidar(x) == pytest.approx(effective_number(np.linalg.eigvalsh(root @ between.numpy() @ root)), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_is_the_exponent_of_the_spectrum(alpha: float) -> None:
    # Columns of an orthogonal matrix beside the constant one have exactly this covariance.
    columns = torch.linalg.qr(torch.cat([torch.ones(40, 1), torch.randn(40, 16)], dim=1).double()).Q[:, 1:]

    assert alpha_req(columns * torch.arange(1, 17).double() ** (-alpha / 2)) == pytest.approx(alpha, rel=1e-6)
    assert math.isnan(alpha_req(torch.ones(4, 3)))


@pytest.mark.parametrize("shape", [(300, 120), (128, 200), (128, 16)])
def test_alpha_req_is_fitted_as_its_authors_do(shape: tuple[int, int]) -> None:
    x = torch.randn(shape) * torch.linspace(0.1, 3.0, shape[1]) + 1.0
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(x.double().numpy(), rowvar=False)))[::-1][3:100]
    places = np.arange(4, 4 + len(spectrum))
    # polyfit squares its weights.
    slope, _ = np.polyfit(np.log(places), np.log(spectrum), 1, w=places**-0.5)

    assert alpha_req(x) == pytest.approx(-slope, rel=1e-6)


def test_they_are_published_while_training() -> None:
    torch.manual_seed(0)
    observer, values = CollapseObserver(1), {}
    predictions = torch.randn(8, 5, 6)

    observer.look(Observation(torch.randn(4, 7, 6), torch.randn(4, 7, 6), predictions))
    observer.judge(1)
    observer.add_metrics(values)

    assert {"target_rank", "target_rankme", "target_alpha_req", "prediction_lidar"} <= values.keys()
    assert values["prediction_lidar"] == lidar(predictions.mean(dim=1).view(4, 2, 6))
    # One view of each sample has nothing within samples.
    observer.look(Observation(torch.randn(4, 7, 6), torch.randn(4, 7, 6), torch.randn(4, 5, 6)))
    observer.judge(2)
    values.clear()
    observer.add_metrics(values)
    assert "prediction_lidar" not in values
