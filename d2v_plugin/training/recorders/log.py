"""Metrics in the log: a line for each publication, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from fairseq2.logging import log
from fairseq2.metrics.recorders import MetricRecorder
from typing_extensions import override

from d2v_plugin.training.recorders.names import flatten, format_value


@final
class LogRecorder(MetricRecorder):
    """Writes all metrics to the log file; not to our log, of which the screen shows everything."""

    @override
    def record_metric_values(self, category: str, values: Mapping[str, object], step_nr: int | None = None) -> None:
        shown = (f"{name.words} {format_value(name, value)}" for name, value in flatten(category, values))
        where = category if step_nr is None else f"Update {step_nr:,}, {category}"
        log.info("{}: {}", where, ", ".join(shown))

    @override
    def close(self) -> None:
        pass
