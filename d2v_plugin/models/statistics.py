"""Representations in numbers: deviation, effective rank, variation within samples, similarity of tokens."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON: Final = 1e-7
_ALPHA_PLACES: Final = slice(3, 100)


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
    centered = ((x - mean) * valid).flatten(0, 1)
    total, within = centered.square().sum(), ((x - row_means) * valid).square().sum()
    if not total > 0.0:
        return Signs(deviation=float(total), rank=float(total), variation=float(total))  # 0, or NaN

    gram = centered @ centered.T if centered.size(0) <= centered.size(1) else centered.T @ centered
    spectrum = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    rank = torch.special.entr(spectrum / spectrum.sum()).sum().exp()
    # One sample or one position cannot show whether samples are constant.
    variation = within / total if min(x.shape[:2]) > 1 else math.nan

    return Signs(float((total / x.square().sum()).sqrt()), float(rank), float(variation))


@torch.no_grad()
def rank_me(x: Tensor) -> float:
    """RankMe (Garrido et al., ICML 2023, arXiv 2210.02885, section 3): exp(-sum of p_k log p_k) over all singular values.

    p_k is the k-th of the min(n, D) singular values over their sum, plus 1e-7. Nothing is centered.

    :param x: (n, D)
    """
    spectrum = _spectrum(x.cpu().double()).sqrt()

    return _effective_number(spectrum, len(spectrum))


@torch.no_grad()
def lidar(x: Tensor, *, delta: float = 1e-4) -> float:
    """LiDAR (Thilak et al., ICLR 2024, arXiv 2312.04000, equations 1 to 4): exp(-sum of p_k log p_k) of the LDA matrix.

    That is W^-1/2 B W^-1/2. B is the covariance of the samples' means, about the mean of these; W is that of the views about
    the mean of their sample, plus delta on its diagonal; both are means over samples or views. p_k is the k-th of the D
    eigenvalues over their sum, plus 1e-7 (the paper's epsilon, which it gives no value, has RankMe's).

    :param x: (n, q, D), q views of each of n samples, both at least 2.
    :param delta: the paper names no value. Where views of a sample differ by less than its root, LiDAR depends on the scale of x.
    """
    x = x.cpu().double()
    means = x.mean(dim=1)
    between, within = means - means.mean(dim=0), (x - means.unsqueeze(1)).flatten(0, 1)
    # W has no more directions than there are views; delta alone is in the others.
    values, vectors = torch.linalg.eigh(within @ within.T / len(within))
    known = values > values[-1] * 1e-12
    directions = within.T @ vectors[:, known] * (values[known] * len(within)).rsqrt()
    projected = between @ directions
    # The eigenvalues of W^-1/2 B W^-1/2 are those of the means times W^-1 times the means, and zeros.
    scaled = projected * (1.0 / (values[known] + delta) - 1.0 / delta)
    gram = scaled @ projected.T + between @ between.T / delta

    return _effective_number(torch.linalg.eigvalsh(gram)[-min(between.shape) :].clamp(min=0.0), between.size(1))


@torch.no_grad()
def alpha_req(x: Tensor) -> float:
    """Alpha-ReQ (Agrawal et al., NeurIPS 2022): the exponent by which the eigenvalues of the covariance decay.

    The best are near 1. It is the negative slope of a line through their logarithms over those of their places. The paper does
    not say which places count; as in its authors' code (github.com/kumarkrishna/fastssl, utils/powerlaw.py), these are 4 to 100,
    each with the weight 1 / place. Eigenvalues that are rounding do not count; NaN if fewer than two are left.

    :param x: (n, D)
    """
    x = x.cpu().double()
    spectrum = _spectrum(x - x.mean(dim=0)).flip(0)
    spectrum = spectrum[spectrum > spectrum.max() * 1e-12][_ALPHA_PLACES]
    places = torch.arange(_ALPHA_PLACES.start + 1, _ALPHA_PLACES.start + 1 + len(spectrum)).double()
    weights, logs = 1.0 / places, places.log()
    centered = weights * (logs - (weights * logs).sum() / weights.sum())

    return float(-(centered @ spectrum.log()) / (centered @ logs))


def _spectrum(x: Tensor) -> Tensor:
    """The squared singular values of (n, D), ascending; from the smaller of both products with itself, which is fast."""
    values: Tensor = torch.linalg.eigvalsh(x @ x.T if x.size(0) <= x.size(1) else x.T @ x)

    return values.clamp(min=0.0)


def _effective_number(values: Tensor, count: int) -> float:
    """exp(entropy) of values over their sum, with RankMe's 1e-7 added to each share.

    :param count: how many there are; those that are missing are zero.
    """
    shares = F.pad(values / values.sum(), (0, count - len(values))) + _EPSILON

    return float(torch.special.entr(shares).sum().exp())


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
    x = x.float().flatten(0, -2)
    # `var` over rows takes five times as long on a CPU.
    return ((x - x.mean(dim=0)).square_().sum(dim=0) / (len(x) - 1) + 1e-6).sqrt()


def token_similarities(x: Tensor) -> Tensor:
    """Cosine similarity of the tokens of each sample: (..., S, D) -> (..., S, S)."""
    directions: Tensor = F.normalize(x.detach().float(), dim=-1)

    return directions @ directions.transpose(-1, -2)
