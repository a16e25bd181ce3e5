"""Who is told of metrics, on rank 0: log and files, TensorBoard, W&B, and the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final

from fairseq2.gang import Gangs
from fairseq2.metrics.recorders import (
    NOOP_METRIC_RECORDER,
    JsonlMetricRecorder,
    LogMetricRecorder,
    MetricDescriptorRegistry,
    MetricRecorder,
)
from fairseq2.metrics.recorders import TensorBoardRecorder as TheirTensorBoardRecorder
from fairseq2.metrics.recorders import WandbRecorder as TheirWandbRecorder
from fairseq2.recipe.config import RegimeSection
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.progress import ProgressReporter
from rich.progress import Progress
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override
from wandb import Run

from d2v_plugin.core.fairseq2_private import find_progress_bars, remove_provider
from d2v_plugin.training.layer_groups import name_groups
from d2v_plugin.training.recorders.configuration import read_configuration
from d2v_plugin.training.recorders.files import RetryingRecorder, create_json_lines
from d2v_plugin.training.recorders.log import LogRecorder
from d2v_plugin.training.recorders.rates import name_rates
from d2v_plugin.training.recorders.screen import TrainingScreen
from d2v_plugin.training.recorders.tensorboard import TensorBoardRecorder
from d2v_plugin.training.recorders.wandb import WandbRecorder, open_run
from d2v_plugin.weights.run_folder import RunFolder


def register_recorders(container: DependencyContainer, *, trains: bool) -> None:
    """Put our recorders in the place of fairseq2's, which it registers before a recipe registers its own objects.

    :param trains: there are an optimizer, and a screen that shows updates.
    """

    def replace(resolver: DependencyResolver, recorder: MetricRecorder) -> MetricRecorder:
        output_dir = resolver.resolve(Path)
        match recorder:
            case LogMetricRecorder():
                return LogRecorder()
            case JsonlMetricRecorder():
                return create_json_lines(output_dir, resolver.resolve(MetricDescriptorRegistry))
            case TheirTensorBoardRecorder():
                configuration, folder = read_configuration(resolver), RunFolder(output_dir).tensorboard
                return RetryingRecorder(lambda: TensorBoardRecorder(folder, configuration), "TensorBoard's files")
            case TheirWandbRecorder():
                return WandbRecorder(resolver.resolve(Run))
        return recorder

    def create_recorder(resolver: DependencyResolver) -> MetricRecorder:
        if resolver.resolve(Gangs).root.rank != 0:
            return NOOP_METRIC_RECORDER
        recorders = [replace(resolver, each) for each in resolver.collection.resolve(MetricRecorder)]
        if not trains:
            return Recorders(recorders, list)
        recorders.append(resolver.resolve(TrainingScreen))

        return Recorders(recorders, lambda: name_groups(resolver.resolve(nn.Module), resolver.resolve(Optimizer)))

    def open_wandb(resolver: DependencyResolver) -> Run:
        return open_run(resolver.resolve(Path), read_configuration(resolver))

    def create_screen(resolver: DependencyResolver) -> TrainingScreen:
        progress = find_progress_bars(resolver.resolve(ProgressReporter))
        bars = progress if isinstance(progress, Progress) else None
        num_ranks = resolver.resolve(Gangs).dp.size

        def read_rate() -> float:
            return max(float(group["lr"]) for group in resolver.resolve(Optimizer).param_groups)

        return TrainingScreen(bars, resolver.resolve(RegimeSection).num_steps, num_ranks=num_ranks, read_rate=read_rate)

    remove_provider(container, MetricRecorder)
    container.register(MetricRecorder, create_recorder, singleton=True)
    remove_provider(container, Run)
    container.register(Run, open_wandb, singleton=True)
    if trains:
        container.register(TrainingScreen, create_screen, singleton=True)


@final
class Recorders(MetricRecorder):
    """All recorders as one; they see learning rates by name."""

    def __init__(self, recorders: Sequence[MetricRecorder], name_groups: Callable[[], Sequence[str]]) -> None:
        """:param name_groups: names the groups of the optimizer, which there is when training has begun."""
        self._recorders = recorders
        self._name_groups = name_groups

    @override
    def record_metric_values(self, category: str, values: Mapping[str, object], step_nr: int | None = None) -> None:
        named = name_rates(values, self._name_groups)
        for recorder in self._recorders:
            recorder.record_metric_values(category, named, step_nr)

    @override
    def close(self) -> None:
        for recorder in self._recorders:
            recorder.close()
