"""Representations in numbers: deviation, effective rank, variation within samples, similarity of tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Signs(NamedTuple):
    """Measures of a set of representations."""

    deviation: float
    """Standard deviation over all tokens, over their root mean square: 0 if they are equal, 1 if their mean is zero."""

    rank: float
    """Effective number of dimensions that they vary in: exp(entropy of the normalised singular values) (arXiv 2210.02885)."""

    variation: float
    """Share of the variance that lies within samples: 0 if each sample is constant over its positions; NaN = unknown."""


@torch.no_grad()
def describe(x: Tensor, padding_mask: Tensor | None = None) -> Signs:
    """Measure a small set of representations, on the host and in fp64: rounding would look like further dimensions.

    :param x: (R, S, D)
    :param padding_mask: (R, S), True = padding.
    """
    x = x.cpu().double()
    valid = torch.ones_like(x[..., :1]) if padding_mask is None else (~padding_mask).unsqueeze(-1).cpu().double()
    x = x * valid

    # (R, S, D) -> (D), (R, 1, D)
    mean = x.sum(dim=(0, 1)) / valid.sum()
    row_means = x.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1.0)
    centred = ((x - mean) * valid).flatten(0, 1)
    total, within = centred.square().sum(), ((x - row_means) * valid).square().sum()
    if not total > 0.0:
        return Signs(deviation=float(total), rank=float(total), variation=float(total))  # 0, or NaN

    gram = centred @ centred.T if centred.size(0) <= centred.size(1) else centred.T @ centred
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    rank = torch.special.entr(spectrum / spectrum.sum()).sum().exp()
    # One sample or one position cannot show whether samples are constant.
    variation = within / total if min(x.shape[:2]) > 1 else math.nan

    return Signs(float((total / x.square().sum()).sqrt()), float(rank), float(variation))


@torch.no_grad()
def rank_me(x: Tensor) -> float:
    """RankMe, arXiv 2210.02885, equation 1: exp(entropy) of the singular values of (n, D), not centred, over their sum."""
    return _effective_number(_spectrum(x.cpu().double()).sqrt())


@torch.no_grad()
def lidar(x: Tensor, *, regularization: float = 1e-4) -> float:
    """LiDAR, arXiv 2312.04000, section 4: exp(entropy) of the eigenvalues of the LDA matrix whose classes are samples.

    :param x: (n, q, D), q views of each of n samples, both at least 2.
    :param regularization: added to the diagonal of the covariance within samples.
    """
    x = x.cpu().double()
    means = x.mean(dim=1)
    between, within = means - means.mean(dim=0), (x - means.unsqueeze(1)).flatten(0, 1)
    # The covariance within samples, W, has no more directions than there are views; the regularization alone is in the others.
    values, vectors = torch.linalg.eigh(within @ within.T / len(within))
    known = values > values[-1] * 1e-12
    directions = within.T @ vectors[:, known] * (values[known] * len(within)).rsqrt()
    projected = between @ directions
    # The eigenvalues of W^-1/2 B W^-1/2 are those of the means times W^-1 times the means.
    scaled = projected * (1.0 / (values[known] + regularization) - 1.0 / regularization)
    gram = scaled @ projected.T + between @ between.T / regularization

    return _effective_number(torch.linalg.eigvalsh(gram)[-min(between.shape) :].clamp(min=0.0))


@torch.no_grad()
def alpha_req(x: Tensor) -> float:
    """Alpha-ReQ, arXiv 2202.05808, section 3: the exponent by which the eigenvalues of the covariance of (n, D) decay.

    The slope of a line through their logarithms over those of their places; the paper finds the best near 1. It is NaN
    if fewer than two are above rounding.
    """
    x = x.cpu().double()
    spectrum = _spectrum(x - x.mean(dim=0)).flip(0)
    spectrum = spectrum[spectrum > spectrum.max() * 1e-12]
    places, values = torch.arange(1, len(spectrum) + 1).double().log(), spectrum.log()
    centred = places - places.mean()

    return float(-(centred @ values) / centred.square().sum())


def _spectrum(x: Tensor) -> Tensor:
    """The squared singular values of (n, D), ascending; from the smaller of both products with itself, which is fast."""
    values: Tensor = torch.linalg.eigvalsh(x @ x.T if x.size(0) <= x.size(1) else x.T @ x)

    return values.clamp(min=0.0)


def _effective_number(values: Tensor) -> float:
    """exp(entropy) of values over their sum, with both papers' 1e-7 added to each share."""
    return float(torch.special.entr(values / values.sum() + 1e-7).sum().exp())


def mean_valid(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Mean over the positions that are no padding: (N, S, ...) -> (N, ...).

    :param padding_mask: (N, S), True = padding, where ``x`` may hold anything; None = nothing is padded.
    """
    if padding_mask is None:
        return x.mean(dim=1)
    padding_mask = padding_mask.view(*padding_mask.shape, *[1] * (x.dim() - 2))

    return x.masked_fill(padding_mask, 0.0).sum(dim=1) / (~padding_mask).sum(dim=1)


def channel_deviations(x: Tensor) -> Tensor:
    """Standard deviation of each channel over all tokens: (..., D) -> (D) fp32, near 0 when representations collapse."""
    return (x.float().flatten(0, -2).var(dim=0) + 1e-6).sqrt()


def token_similarities(x: Tensor) -> Tensor:
    """Cosine similarity of the tokens of each sample: (..., S, D) -> (..., S, S)."""
    directions: Tensor = F.normalize(x.detach().float(), dim=-1)

    return directions @ directions.transpose(-1, -2)
