"""Progress bar of a run: its loss, scores and samples per second, beside fairseq2's count and time left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from fairseq2.metrics.recorders import MetricDescriptor, MetricDescriptorRegistry, MetricRecorder
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.progress import ProgressReporter
from rich.progress import Progress
from typing_extensions import override

from d2v_plugin.core.fairseq2_private import find_progress_bars

# fairseq2 sorts metrics by priority and gives scores this one.
SCORE_PRIORITY = 200


@final
class ProgressBarRecorder(MetricRecorder):
    """Writes the latest metrics into the description of the progress bar."""

    def __init__(self, progress: Progress, descriptors: MetricDescriptorRegistry) -> None:
        """:param progress: where fairseq2 shows its tasks."""
        self._progress = progress
        self._descriptors = descriptors
        self._training: dict[str, str] = {}
        self._scores: dict[str, str] = {}

    @override
    def record_metric_values(self, category: str, values: Mapping[str, object], step_nr: int | None = None) -> None:
        shown = {name: (d, values[name]) for name in values if (d := self._descriptors.maybe_get(name)) is not None}
        if category == "train":
            self._training = {name: _format(*shown[name]) for name in ("loss", "samples_per_second") if name in shown}
        else:
            self._scores |= {name: _format(*pair) for name, pair in shown.items() if pair[0].priority == SCORE_PRIORITY}

        for task in self._progress.tasks:
            # During validation other bars come and go.
            if task.description.startswith("train"):
                self._progress.update(task.id, description=self.describe())

    def describe(self) -> str:
        """One line, such as ``train, loss 0.42, linear 0.93, 512 samples/s``."""
        parts = ["train"]
        if "loss" in self._training:
            parts.append(f"loss {self._training['loss']}")
        parts += [f"{name.removeprefix('probe_')} {score}" for name, score in self._scores.items()]
        if "samples_per_second" in self._training:
            parts.append(f"{self._training['samples_per_second']} samples/s")

        return ", ".join(parts)

    @override
    def close(self) -> None:
        pass


def _format(descriptor: MetricDescriptor, value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    return descriptor.formatter(value)


def register_progress_bar(container: DependencyContainer) -> None:
    """Register the recorder; without a progress bar (``--no-rich``) there is none."""

    def maybe_create(resolver: DependencyResolver) -> MetricRecorder | None:
        progress = find_progress_bars(resolver.resolve(ProgressReporter))
        descriptors = resolver.resolve(MetricDescriptorRegistry)

        return ProgressBarRecorder(progress, descriptors) if isinstance(progress, Progress) else None

    container.collection.register(MetricRecorder, maybe_create)
