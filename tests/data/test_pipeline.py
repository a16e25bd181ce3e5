"""The native pipeline: its threads, and faults in it."""

from __future__ import annotations

import gc
from itertools import islice
from threading import Event

import pytest
import torch
from fairseq2.data.data_pipeline import DataPipeline

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.pipeline import build_pipeline


def make_batch(number: int) -> Batch:
    return Batch(Modality.IMAGE, torch.empty(1), torch.tensor([number]))


def test_a_fault_is_raised_at_its_turn_and_freed_without_it() -> None:
    # fairseq2 0.8.1 aborts the process with an exception that waits in the pipeline.
    read_ahead = Event()

    def read(number: int) -> Batch:
        if number < 2:
            return make_batch(number)
        read_ahead.set()
        raise ValueError(f"{number} is bad")

    pipeline = iter(build_pipeline(DataPipeline.count(0), read))
    assert len(list(islice(pipeline, 2))) == 2
    with pytest.raises(ValueError, match="2 is bad"):
        next(pipeline)

    read_ahead.clear()
    pipeline = iter(build_pipeline(DataPipeline.count(0), read))
    next(pipeline)
    assert read_ahead.wait(10)
    del pipeline
    gc.collect()


def test_the_pipelines_threads_start_none_of_their_own() -> None:
    before, numbers = torch.get_num_threads(), []

    def read(unit: int) -> Batch:
        numbers.append(torch.get_num_threads())
        return Batch(Modality.IMAGE, torch.empty(1), torch.tensor([unit]))

    torch.set_num_threads(3)
    try:
        pipeline = iter(build_pipeline(DataPipeline.count(0), read))
        [next(pipeline) for _ in range(8)]
        assert set(numbers) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
