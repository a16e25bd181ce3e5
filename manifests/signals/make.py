"""Make manifests/signals: coupled oscillators, heard by eight channels at 250 Hz, in noise that channels share.

python -m manifests.signals.make [OUT]
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2v_plugin.data.shards import ShardWriter
from manifests.making import SEED, run, write_splits

NUM_CHANNELS = 8
SAMPLE_RATE = 250
NUM_SAMPLES = 2 * SAMPLE_RATE
WARM_UP = SAMPLE_RATE
COUPLING = 12.0
SIZES = {"train": 480, "probe": 120, "valid": 240}

# Who follows whom, (C, C): how strongly a row's oscillator is drawn to a column's; and by how much of a turn it stays behind.
_RING = np.roll(np.eye(NUM_CHANNELS), 1, axis=1)
_HALVES = np.kron(np.eye(2), np.ones((NUM_CHANNELS // 2,) * 2)) / (NUM_CHANNELS // 2)
_PAIRS = np.kron(np.eye(NUM_CHANNELS // 2), 1 - np.eye(2))
CLASSES = {
    "free": (np.zeros((NUM_CHANNELS,) * 2), 0.0),
    "together": (np.ones((NUM_CHANNELS,) * 2) / NUM_CHANNELS, 0.0),
    "forward": (_RING, 1 / NUM_CHANNELS),
    "backward": (_RING, -1 / NUM_CHANNELS),
    "halves": (_HALVES, 0.0),
    "pairs": (_PAIRS, 0.0),
}


def simulate(name: str, generator: np.random.Generator) -> NDArray[np.int16]:
    """A signal (C, T) of phases that attract each other (Kuramoto, 1975), each with a rate of its own, about 10 Hz, and noise."""
    coupling, lag = CLASSES[name]
    rates = 2 * np.pi * generator.normal(10.0, 0.6, NUM_CHANNELS)
    phases = 2 * np.pi * generator.random(NUM_CHANNELS)
    jolts = generator.normal(0.0, np.sqrt(2.0 / SAMPLE_RATE), (WARM_UP + NUM_SAMPLES, NUM_CHANNELS))
    course = np.empty((WARM_UP + NUM_SAMPLES, NUM_CHANNELS))
    for step, jolt in enumerate(jolts):
        pull = (coupling * np.sin(phases[None] - phases[:, None] - 2 * np.pi * lag)).sum(axis=1)
        phases = phases + (rates + COUPLING * pull) / SAMPLE_RATE + jolt
        course[step] = phases
    waves = generator.uniform(0.7, 1.3, NUM_CHANNELS) * np.sin(course[WARM_UP:])
    # Noise of its own, and a slow drift that all channels hear.
    noise = generator.normal(0.0, 0.7, waves.shape)
    drift = np.cumsum(generator.normal(0.0, 0.1, (NUM_SAMPLES, 1)), axis=0)

    return np.round(3000 * (waves + noise + drift)).clip(-32768, 32767).astype(np.int16).T


def make(out: Path) -> None:
    """Splits share no signal but those of ``probe``, which are the first of ``train``."""
    rows: dict[str, list[str]] = {}
    generator = np.random.default_rng(SEED)
    with ShardWriter(out / "signals.zip") as shard:
        for split in ("train", "valid"):
            rows[split] = []
            for index in range(SIZES[split]):
                name = list(CLASSES)[index % len(CLASSES)]
                file = io.BytesIO()
                np.save(file, np.ascontiguousarray(simulate(name, generator)), allow_pickle=False)
                rows[split].append(f"{shard.add(f'{split}-{index:03}.npy', file.getvalue())}\t{NUM_SAMPLES}\t{name}")
    write_splits(out, list(CLASSES), **rows, probe=rows["train"][: SIZES["probe"]])


if __name__ == "__main__":
    run(__doc__, make, "signals")
