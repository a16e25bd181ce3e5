"""Write manifests/digits: the handwritten digits that scikit-learn carries, as PNGs in one shard.

python tools/make_digits.py [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision.io import encode_png

from d2v_plugin.data.draws import Purpose, draw_permutation
from d2v_plugin.data.shards import ShardWriter

NUM_TRAIN = 1200
NUM_PROBE_PER_CLASS = 20
SEED = 0


def write_digits(out: Path) -> None:
    """Write the shard and the splits: 1,200 to train on, 200 of those to fit probes on, 597 to measure with."""
    digits = load_digits()
    # 16 levels of grey -> 0 … 255
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    order = draw_permutation(SEED, 0, Purpose.SPLIT, len(images)).tolist()

    with ShardWriter(out / "digits.zip") as shard:
        rows = [
            f"{shard.add(f'{index:04}.png', encode_png(images[index]).numpy().tobytes())}\t{digits.target[index]}"
            for index in order
        ]

    train, valid = rows[:NUM_TRAIN], rows[NUM_TRAIN:]
    probe = [row for digit in range(10) for row in [row for row in train if row.endswith(f"\t{digit}")][:NUM_PROBE_PER_CLASS]]
    header = [".", "\t".join(["#classes", *"0123456789"])]
    for name, split in (("train", train), ("probe", probe), ("valid", valid)):
        (out / f"{name}.tsv").write_text("\n".join([*header, *split]) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "manifests" / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    write_digits(folder)
