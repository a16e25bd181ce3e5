"""Spikes: losses and gradient norms far above what they recently were."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final, NamedTuple, final

from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput
from d2v_plugin.core.log import log
from d2v_plugin.training.health.incidents import Incidents
from d2v_plugin.training.observers import Observer

WINDOW: Final = 128
MIN_COUNT: Final = 32
NUM_SPREADS: Final = 10.0
MIN_RELATIVE_SPREAD: Final = 0.05
QUIET_STEPS: Final = 100

# The median absolute deviation of normally distributed numbers times this is their standard deviation.
_TO_DEVIATION: Final = 1.4826


class Spike(NamedTuple):
    """A value that stands out, by what it was compared with."""

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
        """Tell whether a spike of this update is to be reported: at most one in 100 updates is."""
        if step_nr < self._next_word:
            return False
        self._next_word = step_nr + QUIET_STEPS

        return True


@final
class SpikeObserver(Observer):
    """Reports losses and gradient norms that stand out among those of their modality."""

    def __init__(self, incidents: Incidents) -> None:
        self._incidents = incidents
        self._detectors: dict[tuple[str, Modality], SpikeDetector] = {}
        self._modality: Modality | None = None

    @override
    def after_forward(self, batch: Batch, output: LossOutput) -> None:
        self._modality = batch.modality  # all passes of an update are of one

    @override
    def after_update(self, step_nr: int, *, norm: float, losses: Sequence[float], skipped: bool) -> None:
        if skipped:
            return
        assert self._modality is not None
        for event, what, value in (
            ("loss_spike", "Loss of this rank", sum(losses) / len(losses)),
            ("gradient_spike", "Gradient norm", norm),
        ):
            detector = self._detectors.setdefault((event, self._modality), SpikeDetector())
            spike = detector.add(value)
            if spike is not None and detector.may_speak(step_nr):
                listed = self._incidents.add(step_nr, event, norm=norm, losses=losses)
                log.warning(
                    f"{what} {value:.4g} at update {step_nr} is far above its recent {spike.median:.4g} "
                    f"(spread {spike.spread:.2g}); {listed}."
                )
