"""Recordings as the rows of a manifest describe them."""

from __future__ import annotations

import numpy as np
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.audio import AudioReadingConfig, Recording
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.order import Rows


def read_lengths(manifest: Manifest, config: AudioReadingConfig) -> Rows:
    """Lengths (rows,) in samples at the model's rate.

    :raises RecipeError: recordings have other rates and are not to be resampled.
    """
    sizes, rates = manifest.integers("size"), manifest.integers("rate")
    rates = np.where(rates > 0, rates, config.sample_rate)
    other = rates[rates != config.sample_rate]
    if len(other) and not config.resample:
        raise RecipeError(
            f"{manifest.path} has {len(other):,} recordings of {', '.join(map(str, np.unique(other)))} samples per second, but "
            f"the model takes {config.sample_rate}. Set `task.config.audio.resample: true`, or convert them."
        )

    return sizes * config.sample_rate // rates


def recording_of(manifest: Manifest, row: int) -> Recording:
    """Put together what a row says of its recording."""
    start, rate = int(manifest.integers("start")[row]), int(manifest.integers("rate")[row])
    mean, variance = manifest.text("mean", row), manifest.text("variance", row)
    return Recording(
        manifest.location(row),
        int(manifest.integers("size")[row]),
        max(start, 0),
        is_segment=start >= 0,
        rate=rate if rate > 0 else None,
        statistics=None if mean is None or variance is None else (float(mean), float(variance)),
    )
