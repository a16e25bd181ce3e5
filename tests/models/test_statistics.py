"""Measures of representations against the formulas of their papers, written out."""

from __future__ import annotations

import math

import pytest
import torch

from d2v_plugin.core.contracts import Observation
from d2v_plugin.models.statistics import alpha_req, lidar, rank_me
from d2v_plugin.training.health.collapse import CollapseObserver


def test_rankme_is_equation_1_of_its_paper() -> None:
    x = torch.randn(50, 12) * torch.linspace(0.1, 3.0, 12) + 1.0
    values = torch.linalg.svd(x.double()).S
    shares = values / values.sum() + 1e-7

    assert rank_me(x) == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-9)
    # Equal singular values count as many as there are.
    assert rank_me(torch.eye(8)) == pytest.approx(8.0, rel=1e-5)


def test_lidar_is_the_effective_rank_of_the_matrix_of_its_paper() -> None:
    x = torch.randn(6, 1, 5).double() + 0.3 * torch.randn(6, 4, 5).double()
    mean = x.mean(dim=(0, 1))
    between = sum(torch.outer(c - mean, c - mean) for c in x.mean(dim=1)) / 6
    within = sum(torch.outer(v - c.mean(0), v - c.mean(0)) for c in x for v in c) / 24 + 1e-4 * torch.eye(5)
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(root @ between @ root).clamp(min=0.0)
    shares = eigenvalues / eigenvalues.sum() + 1e-7

    assert lidar(x) == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_is_the_exponent_of_the_spectrum(alpha: float) -> None:
    # Columns of an orthogonal matrix beside the constant one have exactly this covariance.
    columns = torch.linalg.qr(torch.cat([torch.ones(40, 1), torch.randn(40, 16)], dim=1).double()).Q[:, 1:]

    assert alpha_req(columns * torch.arange(1, 17).double() ** (-alpha / 2)) == pytest.approx(alpha, rel=1e-6)
    assert math.isnan(alpha_req(torch.ones(4, 3)))


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
