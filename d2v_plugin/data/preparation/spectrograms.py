"""Mean and deviation of log-mel spectrograms, which models of spectrograms are told."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from d2v_plugin.data.audio import AudioReadingConfig, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.log_mel import LogMelConfig, check_log_mel, log_mel
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.recordings import recording_of

_NUM_HEARD = 100


def measure_log_mel(manifest: Manifest, config: LogMelConfig) -> dict[str, Any] | None:
    """Mean and deviation of log-mel values of a hundred recordings at most, evenly spread, with the settings that they are of.

    :returns: None = no recording can be read, or there are no such spectrograms of sound at this rate.
    """
    if any(failed for failed, _ in check_log_mel(config, "")):
        return None
    moments, count = torch.zeros(3, dtype=torch.float64), 0
    reading = AudioReadingConfig(sample_rate=config.sample_rate, resample=True, normalize=False)
    for row in np.unique(np.linspace(0, len(manifest) - 1, min(len(manifest), _NUM_HEARD)).astype(np.int64)):
        try:
            waveform = torch.from_numpy(read_recording(recording_of(manifest, int(row)), reading))
            values = log_mel(waveform.unsqueeze(0), config).double()
        except (SampleError, OSError, RuntimeError, ValueError):
            continue
        count += 1
        moments += torch.stack([torch.tensor(values.numel()), values.sum(), values.square().sum()])
    if not count:
        return None
    number, total, squares = moments.tolist()
    mean = total / number

    return {"mean": round(mean, 4), "std": round(math.sqrt(squares / number - mean**2), 4), "recordings": count, **asdict(config)}
