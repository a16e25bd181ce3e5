"""Make manifests/fashion: the 70,000 pictures of Fashion-MNIST, as PNGs in two shards.

Reads the Debian package dataset-fashion-mnist (apt-get download dataset-fashion-mnist; dpkg-deb -x dataset-*.deb FOLDER).

python -m manifests.fashion.make FOLDER [OUT]
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import encode_png

from d2v_plugin.data.random import Purpose, draw_permutation
from d2v_plugin.data.shards import ShardWriter
from manifests.making import SEED, run, write_splits

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
SIDE = 28
NUM_PROBE_PER_CLASS = 100
NUM_BANK_PER_CLASS = 1000
NUM_VALID = 2000


def read_pictures(folder: Path, prefix: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures, (N, 28, 28), and the numbers of their classes, (N), of a split in the files of MNIST's format."""
    pictures, labels = (
        np.frombuffer(gzip.decompress((folder / f"{prefix}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for kind, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )

    return pictures.reshape(-1, SIDE, SIDE), labels


def make(source: Path, out: Path) -> None:
    """``bank`` and, of it, ``probe`` are parts of ``train`` with as many of each class; ``valid`` is one of ``test``."""
    rows: dict[str, list[str]] = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pictures, labels = read_pictures(source / "usr" / "share" / "datasets" / "fashion-mnist", prefix)
        order = draw_permutation(SEED, 0, Purpose.SPLIT, len(labels)).tolist()
        with ShardWriter(out / f"{split}.zip") as shard:
            rows[split] = []
            for index in order:
                png = encode_png(torch.from_numpy(pictures[index : index + 1].copy())).numpy().tobytes()
                rows[split].append(f"{shard.add(f'{index:05}.png', png)}\t{CLASSES[labels[index]]}")
    by_class = [[row for row in rows["train"] if row.endswith(f"\t{name}")] for name in CLASSES]
    bank, probe = ([row for found in by_class for row in found[:count]] for count in (NUM_BANK_PER_CLASS, NUM_PROBE_PER_CLASS))
    write_splits(out, CLASSES, **rows, bank=bank, probe=probe, valid=rows["test"][:NUM_VALID])


if __name__ == "__main__":
    run(__doc__, make, "fashion", source="FOLDER")
