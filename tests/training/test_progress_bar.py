from __future__ import annotations

import torch
from fairseq2.metrics.formatters import format_as_float
from fairseq2.metrics.recorders import MetricDescriptor, MetricDescriptorRegistry
from rich.progress import Progress

from d2v_plugin.training.progress_bar import SCORE_PRIORITY, ProgressBarRecorder

DESCRIPTORS = MetricDescriptorRegistry(
    [
        MetricDescriptor("loss", "Loss", 90, format_as_float),
        MetricDescriptor("probe_linear", "Linear", SCORE_PRIORITY, format_as_float),
        MetricDescriptor("samples_per_second", "Rate", 810, format_as_float),
        MetricDescriptor("wall_time", "Wall Time", 510, format_as_float),
    ]
)


def test_the_progress_bar_says_loss_score_and_rate() -> None:
    progress = Progress(disable=True)
    train, other = progress.add_task("train", total=10), progress.add_task("valid", total=3)
    recorder = ProgressBarRecorder(progress, DESCRIPTORS)
    recorder.record_metric_values("train", {"loss": torch.tensor(0.421), "samples_per_second": 1234.5, "wall_time": 3.0}, 1)
    recorder.record_metric_values("valid/probe", {"probe_linear": 0.934, "wall_time": 3.0, "unknown": 1.0}, 1)
    descriptions = {task.id: task.description for task in progress.tasks}

    assert descriptions == {train: "train, loss 0.421, linear 0.934, 1,234 samples/s", other: "valid"}
