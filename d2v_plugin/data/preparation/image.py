"""Images: whether they can be decoded, how large they are, and the mean and deviation of their colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from d2v_plugin.data.files import Location
from d2v_plugin.data.image import decode
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.files import Inspected, Source, find_files, prepare_files

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"})
_COLUMNS = ("path", "label")


def prepare_images(
    roots: Sequence[Path],
    out: Path,
    *,
    labels: str | None,
    valid_percent: float,
    seed: int,
    shard_size: int | None,
    workers: int | None,
) -> Report:
    """Write an image dataset; the report has the values for ``task.config.image.mean`` and ``std``."""
    report = Report()
    # Number of pixels, sum and sum of squares of each colour: whole numbers, so that their order does not matter.
    sums = np.zeros((3, 3), dtype=object)
    lock = Lock()

    def inspect(source: Source) -> Inspected:
        image = decode(Location(str(source.path)))
        height, width = image.shape[-2:]
        pixels = image.flatten(1).long()
        moments = [torch.full((3,), height * width), pixels.sum(1), pixels.square().sum(1)]
        with lock:
            sums[:] += np.array([moment.tolist() for moment in moments], dtype=object)
        size = min(height, width)
        power = 1 << (size.bit_length() - 1)

        return Inspected(
            [{}],
            facts={"kinds": source.path.suffix.lower(), "shorter side": f"{power} to {2 * power - 1}"},
            totals={"megapixels": height * width / 1e6},
        )

    sources = find_files(roots, SUFFIXES, labels, report)
    prepare_files(
        sources,
        out,
        inspect,
        report,
        columns=_COLUMNS,
        plain=_COLUMNS,
        valid_percent=valid_percent,
        seed=seed,
        shard_size=shard_size,
        workers=workers,
    )
    mean, square = ((sums[power] / sums[0]).astype(np.float64) / 255**power for power in (1, 2))
    report.facts |= {"mean": mean.round(4).tolist(), "std": np.sqrt(square - mean**2).round(4).tolist()}
    report.save(out)

    return report
