"""Stateless random numbers: what is drawn depends on what it is drawn for, not on what was drawn before.

Every random decision of the input pipeline is keyed by (seed, epoch, purpose, sample id), so that it is the same for any
number of ranks, threads and prefetched batches, and after any resume. Only the raw stream of the counter-based Philox
generator is used: NumPy keeps that stable over versions, the methods of ``Generator`` it does not.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_WORD = 1 << 64


class Purpose(IntEnum):
    """What is being drawn; two purposes never share numbers."""

    ORDER = 0
    AUGMENTATION = 1
    CROP = 2
    SPLIT = 3
    TIES = 4
    MODALITY = 5


def draw_words(seed: int, epoch: int, purpose: Purpose, sample_id: int, count: int) -> NDArray[np.uint64]:
    """Draw ``count`` 64-bit words."""
    generator = np.random.Philox(key=(seed % _WORD, epoch), counter=(0, 0, int(purpose), sample_id))

    return generator.random_raw(count)


def draw_uniform(seed: int, epoch: int, purpose: Purpose, sample_id: int, count: int) -> NDArray[np.float64]:
    """Draw ``count`` numbers in [0, 1)."""
    words = draw_words(seed, epoch, purpose, sample_id, count)

    numbers: NDArray[np.float64] = (words >> np.uint64(11)) * np.float64(2.0**-53)

    return numbers


def draw_permutation(seed: int, epoch: int, purpose: Purpose, size: int) -> NDArray[np.int64]:
    """Draw a random order of ``size`` things."""
    return np.argsort(draw_words(seed, epoch, purpose, 0, size), kind="stable").astype(np.int64, copy=False)
