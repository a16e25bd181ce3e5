"""Stateless random numbers: what is drawn depends on what it is drawn for, not on what was drawn before.

Every random decision of the input pipeline is keyed by (seed, epoch, purpose, sample id), so that it is the same for any
number of ranks, threads and prefetched batches, and after any resume. Only the raw stream of the counter-based Philox
generator is used: NumPy keeps that stable over versions, the methods of ``Generator`` it does not.
"""

from __future__ import annotations

import threading
from enum import IntEnum, unique

import numpy as np
from numpy.typing import NDArray

_WORD = 1 << 64
_BUFFER = 4
_this_thread = threading.local()


@unique
class Purpose(IntEnum):
    """All streams of the input pipeline: two purposes never share numbers. Values never change, since runs resume."""

    ORDER = 0
    AUGMENTATION = 1
    CROP = 2
    SPLIT = 3
    TIES = 4
    MODALITY = 5
    RAND_AUGMENT = 6
    ERASING = 7
    MIXING = 8
    DATASET = 9


def draw_words(seed: int, epoch: int, purpose: Purpose, sample_id: int, count: int) -> NDArray[np.uint64]:
    """Draw ``count`` 64-bit words."""
    # A new generator first asks the system for entropy, to throw it away: most of the time a draw would take.
    if not hasattr(_this_thread, "generator"):
        _this_thread.generator = np.random.Philox(0)
    counter, key = np.array([0, 0, int(purpose), sample_id], dtype=np.uint64), np.array([seed % _WORD, epoch], dtype=np.uint64)
    _this_thread.generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": counter, "key": key},
        # Nothing is left of an earlier draw.
        "buffer": np.zeros(_BUFFER, dtype=np.uint64),
        "buffer_pos": _BUFFER,
        "has_uint32": 0,
        "uinteger": 0,
    }

    words: NDArray[np.uint64] = _this_thread.generator.random_raw(count)
    return words


def draw_uniform(seed: int, epoch: int, purpose: Purpose, sample_id: int, count: int) -> NDArray[np.float64]:
    """Draw ``count`` numbers in [0, 1)."""
    words = draw_words(seed, epoch, purpose, sample_id, count)
    numbers: NDArray[np.float64] = (words >> np.uint64(11)) * np.float64(2.0**-53)
    return numbers


def draw_permutation(seed: int, epoch: int, purpose: Purpose, size: int) -> NDArray[np.int64]:
    """Draw a random order of ``size`` things."""
    return np.argsort(draw_words(seed, epoch, purpose, 0, size), kind="stable").astype(np.int64, copy=False)
