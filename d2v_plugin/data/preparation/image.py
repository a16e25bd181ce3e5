"""Images: whether they can be decoded, how large they are, and the mean and deviation of their channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from typing_extensions import Unpack

from d2v_plugin.data.image_decoding import decode_picture
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.files import FileOptions, Inspected, prepare_files
from d2v_plugin.data.preparation.finding import FoundFile, find_files

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy"})
_COLUMNS = ("path", "label")
_FULL = 65_535


def prepare_images(
    roots: Sequence[Path],
    out: Path,
    *,
    labels: str | None,
    num_channels: int = 3,
    **options: Unpack[FileOptions],
) -> Report:
    """Write an image dataset; the report has the values for ``task.config.image.mean`` and ``std``.

    :param num_channels: as which pictures and arrays are read; 3 = red, green and blue, 1 = grey.
    """
    report = Report()
    sources = find_files(roots, SUFFIXES, labels, report)

    return prepare_pictures(sources, out, report, num_channels=num_channels, **options)


def prepare_pictures(
    sources: Sequence[FoundFile], out: Path, report: Report, *, num_channels: int = 3, **options: Unpack[FileOptions]
) -> Report:
    """Write an image dataset of pictures that were found; see :func:`prepare_images`."""
    # (power, channel): number of pixels, sum and sum of squares.
    names = [f"{name} {channel}" for name in ("number", "sum", "squares") for channel in range(num_channels)]

    def inspect(source: FoundFile) -> Inspected:
        image, is_transparent = decode_picture(source.location, num_channels)
        height, width = image.shape[-2:]
        # Whole numbers of 16 bits.
        pixels = (image.flatten(1).double() * 257).round().long()
        moments = torch.stack([torch.full((num_channels,), height * width), pixels.sum(1), pixels.square().sum(1)])
        size = min(height, width)
        power = 1 << (size.bit_length() - 1)
        kind = Path(source.called).suffix.lower().partition(":")[0]  # of a row of a table: that of the table
        return Inspected(
            [{}],
            facts={"kinds": kind, "shorter side": f"{power} to {2 * power - 1}"},
            totals={"megapixels": height * width / 1e6, "transparent pictures, laid on white": int(is_transparent)},
            sums=dict(zip(names, moments.flatten().tolist(), strict=True)),
        )

    settings = {"kind": "image", "channels": num_channels}
    sums = prepare_files(sources, out, inspect, report, settings=settings, columns=_COLUMNS, **options)
    # Of any size: whole numbers.
    moments = np.array([sums[name] for name in names], dtype=object).reshape(3, num_channels)
    mean, square = ((moments[power] / moments[0]).astype(np.float64) / _FULL**power for power in (1, 2))
    report.facts |= {"mean": mean.round(4).tolist(), "std": np.sqrt(square - mean**2).round(4).tolist()}
    report.save(out)

    return report
