"""Losses and metrics that data2vec 1.0 and 2.0 share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_plugin.models.statistics import channel_deviations


def regression_loss(predictions: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Smooth L1, summed over all elements, in fp32.

    :param beta: distance at which it turns from quadratic to linear; 0 = squared error.
    """
    predictions, targets = predictions.float(), targets.float()
    if beta == 0.0:
        return F.mse_loss(predictions, targets, reduction="sum")

    return F.smooth_l1_loss(predictions, targets, reduction="sum", beta=beta)


def variance_loss(x: Tensor, margin: float) -> Tensor:
    """Hinge on deviations (VICReg, equation 1): mean over channels of how far that of (P, D) is below the margin."""
    return F.relu(margin - channel_deviations(x)).mean()


def covariance_loss(x: Tensor) -> Tensor:
    """Sum of the squared covariances of different channels of (P, D), over D (VICReg, equation 4)."""
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / max(1, x.size(0) - 1)

    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.size(1)


def measure_regression(
    terms: Mapping[str, Tensor],
    num_targets: int,
    predictions: Tensor,
    targets: Tensor,
    *,
    masked_fraction: float,
    ema_decay: float,
) -> dict[str, Tensor]:
    """The metrics of a batch.

    :param terms: the terms of the loss by name, sums over targets.
    :param predictions, targets: (..., D)
    """
    return {name: term.detach() / num_targets for name, term in terms.items()} | {
        "target_deviation": channel_deviations(targets).mean(),
        "prediction_deviation": channel_deviations(predictions.detach()).mean(),
        "masked_fraction": torch.tensor(masked_fraction),
        "ema_decay": torch.tensor(ema_decay),
    }


def name_metrics(**terms: bool) -> tuple[str, ...]:
    """The names of :func:`measure_regression`, given which terms a loss has."""
    return (
        *(name for name, is_used in terms.items() if is_used),
        *("target_deviation", "prediction_deviation", "masked_fraction", "ema_decay"),
    )
