"""Make manifests/signals: four patterns of eight channels at 250 Hz that follow each other in one of six orders, under noise.

python -m manifests.signals.make [OUT]
"""

from __future__ import annotations

import io
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2v_plugin.data.shards import ShardWriter
from manifests.making import SEED, run, write_splits

NUM_CHANNELS = 8
NUM_PATTERNS = 4
SAMPLE_RATE = 250
NUM_SAMPLES = 2 * SAMPLE_RATE
SHORTEST, LONGEST = 18, 32
"""Samples that a pattern lasts: 72 to 128 ms."""
NOISE = 1.5
SIZES = {"train": 480, "valid": 240}
NUM_PROBE = 60

# All orders in a circle: the first pattern is always the same.
CLASSES = {"".join("ABCD"[i] for i in (0, *rest)): (0, *rest) for rest in permutations(range(1, NUM_PATTERNS))}


def simulate(order: tuple[int, ...], patterns: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int16]:
    """A signal (C, T): patterns (P, C) in an order, from anywhere in it on, each for a while of its own, and noise."""
    start = int(generator.integers(NUM_PATTERNS))
    lengths = generator.integers(SHORTEST, LONGEST + 1, NUM_SAMPLES // SHORTEST + 2)
    states = np.repeat([order[(start + i) % NUM_PATTERNS] for i in range(len(lengths))], lengths)
    begin = int(generator.integers(SHORTEST))
    clean = patterns[states[begin : begin + NUM_SAMPLES]]
    values = 3000 * (clean + generator.normal(0.0, NOISE, clean.shape))

    return np.asarray(values.T.round().clip(-32768, 32767), dtype=np.int16)


def make(out: Path) -> None:
    """Splits share no signal but those of ``probe``, which are the first of ``train``."""
    rows: dict[str, list[str]] = {}
    generator = np.random.default_rng(SEED)
    patterns = generator.normal(size=(NUM_PATTERNS, NUM_CHANNELS))
    with ShardWriter(out / "signals.zip") as shard:
        for split, size in SIZES.items():
            rows[split] = []
            for index in range(size):
                name = list(CLASSES)[index % len(CLASSES)]
                file = io.BytesIO()
                np.save(file, np.ascontiguousarray(simulate(CLASSES[name], patterns, generator)), allow_pickle=False)
                rows[split].append(f"{shard.add(f'{split}-{index:03}.npy', file.getvalue())}\t{NUM_SAMPLES}\t{name}")
    write_splits(out, list(CLASSES), **rows, probe=rows["train"][:NUM_PROBE])


if __name__ == "__main__":
    run(__doc__, make, "signals")
