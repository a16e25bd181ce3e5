"""Make manifests/digits: the handwritten digits that scikit-learn carries, as PNGs in one shard.

python -m manifests.digits.make [OUT]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from manifests.making import run, write_digits

NUM_TRAIN = 1200


def make(out: Path) -> None:
    """Write 1,200 digits to train on and 597 to measure with."""
    digits = load_digits()
    # 16 levels of grey -> 0 … 255
    write_digits(out, np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target, NUM_TRAIN, "digits.zip")


if __name__ == "__main__":
    run(__doc__, make, "digits")
