"""Counter-based random numbers on any device: each is a hash of its row's key, of its position in the row and of a *stream*.

The same sample therefore gets the same numbers whatever the batch, its order, the rank, the device or a resume.
"""

from __future__ import annotations

import math
from enum import IntEnum, unique
from typing import TypeVar

import torch
from fairseq2.device import Device
from torch import Tensor

IntT = TypeVar("IntT", int, Tensor)

WORD = 0xFFFF_FFFF

# The multipliers of the `lowbias32` finalizer (hash-prospector), the second one minus 2^32: modulo 2^32 it is the
# same number, and its product with a 32-bit word fits into int64.
MULTIPLIERS = (0x7FEB_352D, 0x846C_A68B - (1 << 32))


@unique
class Stream(IntEnum):
    """All independent sequences of random numbers that are drawn from one key.

    A number that has been used keeps its meaning: resumed runs go on with the numbers they would have had. Extensions take
    numbers from 1000 on.
    """

    # Masks and noise of pre-training.
    WINDOWS = 0
    CELLS = 1
    NOISE = 2
    DROPOUT = 3
    ROUNDING = 16
    TOKEN_KINDS = 17
    TOKENS = 18
    BLOCKS = 19

    # Masks of fine-tuning.
    FRAMES = 32
    NUM_FRAME_SPANS = 33
    CHANNELS = 34
    NUM_CHANNEL_SPANS = 35
    FRAME_NOISE = 36

    # Mixtures of recordings.
    PARTNERS = 40
    SHARES = 41

    # The contrastive objective.
    DISTRACTORS = 48
    GUMBEL = 49

    LAYERS = 64


def row_keys(seed: int, step: int, ids: Tensor, num_views: int) -> Tensor:
    """Hash what identifies a row of random numbers.

    :param seed: the run's seed.
    :param step: the number of the update.
    :param ids: (N,) int64 ids of the samples.
    :param num_views: M, the number of masked versions of every sample.
    :returns: (N·M,) int64 keys of 63 bits; the M views of a sample are adjacent.
    """
    views = torch.arange(num_views, device=ids.device)

    def absorb(state: int) -> Tensor:
        for word in (seed, seed >> 32, step):
            state = mix(state ^ (word & WORD))
        samples = mix(mix(state ^ (ids & WORD)) ^ (ids >> 32 & WORD))

        # (N, 1), (M) -> (N·M)
        return mix(samples[:, None] ^ views).flatten()

    return (absorb(1) >> 1) << 32 | absorb(2)


def uniform(keys: Tensor, count: int, *, stream: int) -> Tensor:
    """Draw (R, count) float32 numbers, uniform in [0, 1) with 24 random bits.

    :param keys: (R,) int64 from :func:`row_keys`.
    :param stream: different streams of a key are independent.
    """
    return (_hash_cells(keys, count, stream) >> 8 & 0xFF_FFFF).to(torch.float32).mul_(2.0**-24)


def draw_words(keys: Tensor, count: int, *, stream: int) -> Tensor:
    """Draw (R, count) int64 numbers, uniform in [0, 2^32); parameters as for :func:`uniform`."""
    return _hash_cells(keys, count, stream).to(torch.int64) + (1 << 31)


def gaussian(keys: Tensor, count: int, *, stream: int, std: float = 1.0) -> Tensor:
    """Draw (R, count) float32 normal numbers of mean 0; parameters as for :func:`uniform`.

    One hash gives two numbers by the Box-Muller transform: its low 16 bits the radius (so that no number exceeds 4.9 deviations),
    all of it the angle. On free cores that is faster than :func:`torch.randn`.

    :param std: the standard deviation.
    """
    num_pairs = (count + 1) // 2
    rows, columns = hash_rows(keys, stream), hash_columns(num_pairs, keys.device)
    output = torch.empty((keys.size(0), 2, num_pairs), dtype=torch.float32, device=keys.device)

    # Few enough rows at a time for the intermediate results to stay in a CPU's cache; on a GPU, to bound their memory. Compiled
    # code has none.
    chunk_size = 2**17 if keys.device.type == "cpu" else 2**24
    num_rows = keys.size(0) if torch.compiler.is_compiling() else max(1, chunk_size // max(1, num_pairs))
    for chunk, hashed in zip(torch.split(output, num_rows), torch.split(rows, num_rows), strict=True):
        bits = finalize(hashed[:, None] ^ columns)
        angle = bits.to(torch.float32).mul_(math.pi / 2**31)
        radius = (bits & 0xFFFF).to(torch.float32).add_(0.5).mul_(2.0**-16).log_().mul_(-2.0).sqrt_()
        if keys.device.type != "cpu":
            radius.mul_(std)
        chunk[:, 0] = angle.cos().mul_(radius)
        chunk[:, 1] = angle.sin_().mul_(radius)

    output = output.flatten(1)[:, :count]

    # On a CPU last, which rounds as it always has.
    return output.mul_(std) if keys.device.type == "cpu" and std != 1.0 else output


def mix(word: IntT) -> IntT:
    """Permute the 32-bit words, held in int64 (no product overflows), so that every bit depends on every bit."""
    word = word ^ word >> 16
    word = word * MULTIPLIERS[0] & WORD
    word = word ^ word >> 15
    word = word * MULTIPLIERS[1] & WORD

    return word ^ word >> 16


def finalize(words: Tensor) -> Tensor:
    """The rest of :func:`mix`, after its first line, of int32 words in place: half the memory traffic of int64.

    int32 products wrap around on CPUs and on GPUs alike.
    """
    words *= MULTIPLIERS[0]
    words ^= (words >> 15).bitwise_and_(0x1_FFFF)
    words *= MULTIPLIERS[1]
    words ^= (words >> 16).bitwise_and_(0xFFFF)

    return words


def hash_rows(keys: Tensor, stream: int) -> Tensor:
    """Words (R,) int32 that differ from row to row: ``finalize(rows[:, None] ^ columns)`` are the bits of all elements."""
    return _to_int32(mix(mix((keys & WORD) ^ mix(stream + 1 & WORD)) ^ keys >> 32))


def hash_columns(count: int, device: Device) -> Tensor:
    """Words (count,) int32 that differ from column to column."""
    return _to_int32(mix(torch.arange(count, device=device)))


def _hash_cells(keys: Tensor, count: int, stream: int) -> Tensor:
    """(R, count) int32, all bits random."""
    return finalize(hash_rows(keys, stream)[:, None] ^ hash_columns(count, keys.device))


def _to_int32(words: Tensor) -> Tensor:
    # A word above 2^31 has no int32; shifting the range is as good a permutation as any.
    return (words - (1 << 31)).to(torch.int32)
