"""BERT's mixture of tokens at masked positions of text: ``<mask>``, random tokens, the original ones."""

from __future__ import annotations

import torch
from torch import Tensor

from d2v_plugin.core.random import Stream, uniform


def corrupt_tokens(
    masked: Tensor, tokens: Tensor, mask: Tensor, keys: Tensor, *, words: tuple[int, int], random_share: float, kept_share: float
) -> Tensor:
    """Put random or the original tokens at some of the masked positions (BERT, section 3.1).

    :param masked: (N, S) ids with ``<mask>`` at the masked positions.
    :param tokens: (N, S) the original ids.
    :param mask: (N, S), True = masked.
    :param keys: (N,) from :meth:`d2v_plugin.core.contracts.StepInfo.keys`.
    :param words: the first id of a random token and the one after the last.
    :returns: (N, S)
    """
    kinds = uniform(keys, tokens.size(1), stream=Stream.TOKEN_KINDS)
    low, high = words
    random = low + (uniform(keys, tokens.size(1), stream=Stream.TOKENS) * (high - low)).long()
    masked = torch.where(mask & (kinds < random_share), random, masked)

    return torch.where(mask & (kinds >= random_share) & (kinds < random_share + kept_share), tokens, masked)


def check_shares(random_tokens: float, kept_tokens: float) -> tuple[bool, str]:
    """The check of the two shares for :func:`d2v_plugin.core.validation.report`."""
    return (
        random_tokens + kept_tokens > 1.0,
        f"`random_tokens` and `kept_tokens` must be at most 1 together, but are {random_tokens} and {kept_tokens}.",
    )
