"""The screen while a run trains: a progress bar on a terminal, lines at growing intervals where there is none."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from fairseq2.metrics.recorders import MetricRecorder
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput
from d2v_plugin.core.log import log
from d2v_plugin.training.observers import Observer
from d2v_plugin.training.recorders.names import LR, flatten, format_value, name_metric

# Loss and rate are those of so many updates, so that they can be read.
_WINDOW: Final = 20

# Seconds between two lines: a tenth of the time the run has taken, within these limits.
_SHORTEST, _LONGEST, _GROWTH = 2.0, 600.0, 0.1


@dataclass(frozen=True)
class _Update:
    loss: float
    num_samples: int
    seconds: float


@final
class TrainingScreen(Observer, MetricRecorder):
    """Says how a run goes, from its first updates on; on rank 0."""

    def __init__(
        self,
        progress: Progress | None,
        num_updates: int | None,
        *,
        num_ranks: int = 1,
        read_rate: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        :param progress: where fairseq2 shows its bars; None = there are none, so lines are written to the log.
        :param num_updates: of the whole run.
        :param num_ranks: that read samples; each counts as many as this one.
        :param read_rate: reads the learning rate of the latest update.
        :param clock: seconds that never go back.
        """
        self._progress = progress
        self._num_updates = num_updates
        self._num_ranks = num_ranks
        self._read_rate = read_rate
        self._clock = clock
        self._latest: deque[_Update] = deque(maxlen=_WINDOW)
        self._num_samples = 0
        self._since: float | None = None
        self._start: float | None = None
        self._first_step = 1
        self._next_line = 0.0
        if progress is not None:
            progress.columns = tuple(_columns())

    @override
    def before_update(self, step_nr: int) -> None:
        now = self._clock()
        if self._start is None:
            self._start, self._first_step = now, step_nr
        if self._since is None:
            self._since = now
        self._num_samples = 0

    @override
    def after_forward(self, batch: Batch, output: LossOutput) -> None:
        self._num_samples += batch.num_examples

    @override
    def after_update(self, step_nr: int, *, norm: float, losses: Sequence[float], skipped: bool) -> None:
        now = self._clock()
        if self._since is None or self._start is None:
            return
        loss = math.nan if skipped else sum(losses) / max(len(losses), 1)
        self._latest.append(_Update(loss, self._num_samples * self._num_ranks, now - self._since))
        self._since = now
        if self._progress is not None:
            self._update_bar()
        elif now >= self._next_line or step_nr == self._num_updates:
            elapsed = now - self._start
            self._next_line = now + min(max(_SHORTEST, _GROWTH * elapsed), _LONGEST)
            log.info("{}", self._describe_line(step_nr, elapsed))

    @override
    def record_metric_values(self, category: str, values: Mapping[str, object], step_nr: int | None = None) -> None:
        # What comes now, such as validation, is not the time of an update.
        self._since = None
        if category == "train":
            return

        unit = category.partition("/")[2]
        scores = {metric: value for metric, value in values.items() if not metric.endswith("_time") and "_layer" not in metric}
        shown = [f"{name.words} {format_value(name, value)}" for name, value in flatten(category, scores)]
        if shown:
            where = f"{unit}: " if unit and unit != "probe" else ""
            log.info("Update {:,}: {}{}", step_nr or 0, where, ", ".join(shown))

    def describe(self) -> str:
        """Describe the latest updates: ``loss 0.42, 512 samples/s``."""
        losses = [update.loss for update in self._latest if math.isfinite(update.loss)]
        parts = []
        if losses:
            parts.append(f"loss {_format('loss', sum(losses) / len(losses))}")
        seconds = sum(update.seconds for update in self._latest)
        if seconds > 0:
            rate = sum(update.num_samples for update in self._latest) / seconds
            parts.append(f"{_format('samples_per_second', rate)} samples/s")

        return ", ".join(parts)

    def _describe_line(self, step_nr: int, elapsed: float) -> str:
        parts = [self.describe()]
        if self._read_rate is not None:
            parts.append(f"learning rate {_format(LR, self._read_rate())}")
        if self._num_updates is None:
            return f"Update {step_nr:,}: {', '.join(parts)}"
        done = step_nr - self._first_step + 1
        if done > 1 and step_nr < self._num_updates:
            parts.append(f"{format_duration(elapsed / done * (self._num_updates - step_nr))} left")

        return f"Update {step_nr:,} of {self._num_updates:,}: {', '.join(parts)}"

    def _update_bar(self) -> None:
        assert self._progress is not None
        for task in self._progress.tasks:
            # During validation other bars come and go.
            if task.description.startswith("train"):
                self._progress.update(task.id, description=f"train, {self.describe()}")

    @override
    def close(self) -> None:
        pass


def _columns() -> list[ProgressColumn]:
    """The text before all else: it is what a narrow terminal keeps."""
    return [
        TextColumn("{task.description}", style="progress.description", table_column=Column(no_wrap=True, ratio=None)),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
    ]


def _format(metric: str, value: float) -> str:
    return format_value(name_metric("train", metric), value, digits=3)


def format_duration(seconds: float) -> str:
    """``45 s``, ``3 min``, ``2 h 05 min``, ``1 d 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"

    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
