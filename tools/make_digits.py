"""Write manifests/digits: the handwritten digits that scikit-learn carries, as PNGs in one shard.

python tools/make_digits.py [OUT]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torchvision.io import encode_png

from d2v_plugin.data.random import Purpose, draw_permutation
from d2v_plugin.data.shards import ShardWriter

NUM_TRAIN = 1200
NUM_PROBE_PER_CLASS = 20
SEED = 0


def write_digits(out: Path) -> None:
    """Write 1,200 digits to train on and 597 to measure with."""
    digits = load_digits()
    # 16 levels of grey -> 0 … 255
    write_splits(out, np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target, NUM_TRAIN, "digits.zip")


def write_splits(out: Path, images: NDArray[np.uint8], labels: Sequence[int], num_train: int, shard_name: str) -> None:
    """Write the shard and the splits: one to train on, 20 of each digit of it to fit probes on, the rest to measure with.

    :param images: (N, H, W), grey.
    """
    order = draw_permutation(SEED, 0, Purpose.SPLIT, len(images)).tolist()
    with ShardWriter(out / shard_name) as shard:
        rows = [
            f"{shard.add(f'{index:04}.png', encode_png(torch.from_numpy(images[index : index + 1])).numpy().tobytes())}"
            f"\t{labels[index]}"
            for index in order
        ]

    train, valid = rows[:num_train], rows[num_train:]
    probe = [row for digit in range(10) for row in [row for row in train if row.endswith(f"\t{digit}")][:NUM_PROBE_PER_CLASS]]
    header = [".", "\t".join(["#classes", *"0123456789"])]
    for name, split in (("train", train), ("probe", probe), ("valid", valid)):
        (out / f"{name}.tsv").write_text("\n".join([*header, *split]) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "manifests" / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    write_digits(folder)
