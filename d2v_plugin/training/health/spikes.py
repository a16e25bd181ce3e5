"""Spikes: values far above what they recently were."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final, final

WINDOW: Final = 128
MIN_COUNT: Final = 32
NUM_SPREADS: Final = 10.0
MIN_RELATIVE_SPREAD: Final = 0.05
QUIET_STEPS: Final = 100

# The median absolute deviation of normally distributed numbers times this is their standard deviation.
_TO_DEVIATION: Final = 1.4826


@dataclass(frozen=True)
class Spike:
    """What a value was compared with."""

    median: float

    spread: float
    """Robust estimate of the standard deviation."""


@final
class SpikeDetector:
    """Compares values with the median of the last 128; neither a spike itself nor a slow trend moves that by much."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW)
        self._next_word = 0

    def add(self, value: float) -> Spike | None:
        """Compare a value with those before it; the first 32 are only collected.

        :returns: a spike if it is more than 10 standard deviations, and by half, above the median.
        """
        spike = None
        if len(self._values) >= MIN_COUNT:
            middle = median(self._values)
            spread = max(_TO_DEVIATION * median(abs(v - middle) for v in self._values), MIN_RELATIVE_SPREAD * abs(middle))
            if value - middle > NUM_SPREADS * spread:
                spike = Spike(middle, spread)
        self._values.append(value)

        return spike

    def may_speak(self, step_nr: int) -> bool:
        """Whether a spike of this update is to be reported: at most one in 100 updates is."""
        if step_nr < self._next_word:
            return False
        self._next_word = step_nr + QUIET_STEPS

        return True
