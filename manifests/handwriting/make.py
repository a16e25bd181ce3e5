"""Make manifests/handwriting: 5,000 handwritten digits of the OpenCV project, as PNGs in one shard.

Reads `digits.png` of the Debian package opencv-doc (apt-get download opencv-doc; dpkg-deb -x opencv-doc*.deb FOLDER); it lies in
FOLDER/usr/share/doc/opencv-doc/examples/data.

python -m manifests.handwriting.make DIGITS_PNG [OUT]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.io import ImageReadMode, decode_image

from manifests.making import run, write_digits

NUM_TRAIN = 4000
SIDE = 20
PER_DIGIT = 500


def make(picture: Path, out: Path) -> None:
    """Cut the picture, 50 rows of 100 digits in their order, into digits."""
    page = decode_image(str(picture), ImageReadMode.GRAY)[0].numpy()
    height, width = page.shape
    images = page.reshape(height // SIDE, SIDE, width // SIDE, SIDE).swapaxes(1, 2).reshape(-1, SIDE, SIDE)
    labels = [index // PER_DIGIT for index in range(len(images))]
    write_digits(out, np.ascontiguousarray(images), labels, NUM_TRAIN, "handwriting.zip")


if __name__ == "__main__":
    run(__doc__, make, "handwriting", source="DIGITS_PNG")
