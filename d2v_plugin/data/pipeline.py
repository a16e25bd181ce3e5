"""The native pipeline below all readers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from fairseq2.data.data_pipeline import DataPipeline, DataPipelineBuilder
from threadpoolctl import ThreadpoolController
from typing_extensions import Self

from d2v_plugin.core.batch import Batch

_PREFETCH: Final = 2


def build_pipeline(source: DataPipelineBuilder, read: Callable[[Any], Batch | None]) -> DataPipeline:
    """The native pipeline: read whole batches in threads, in order, a few ahead.

    A thread works on a whole batch: decoding and resizing release the interpreter lock, and a call per batch costs less
    than a call per sample. The source must be native: fairseq2 0.8.1 frees a Python iterator without holding that lock. A
    :class:`Batch` passes as it is, where tensors would be unpacked: with a PyTorch newer than fairseq2n's that crashes.
    """
    openmp = ThreadpoolController().select(user_api="openmp")

    def read_alone(key: Any) -> Batch | _Fault | None:
        # Keep PyTorch from starting threads of its own within each of the pipeline's, which takes a third more processor time.
        # It sets their number when a thread first asks for it: what is set before has no effect. Nothing is remembered, since
        # the pipeline's threads are new to Python at every call.
        torch.get_num_threads()
        openmp.limit(limits=1)
        try:
            return read(key)
        except Exception as ex:
            return _Fault(ex)

    batches = source.map(read_alone, num_parallel_calls=count_threads()).filter(lambda batch: batch is not None)

    return cast(DataPipeline, _Pipeline(batches.prefetch(_PREFETCH).and_return()))


def count_threads() -> int:
    """The processors this process may use, shared fairly with the other ranks of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@dataclass(frozen=True)
class _Fault:
    """What a thread raised, to be raised at its turn."""

    error: Exception


class _Pipeline:
    """A native pipeline whose faults travel as values: fairseq2 0.8.1 aborts the process that frees a pipeline with an exception
    in it, such as that of a batch which was read ahead and never asked for."""

    def __init__(self, native: DataPipeline) -> None:
        self._native = native
        self._iterator = iter(native)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        item = next(self._iterator)
        if isinstance(item, _Fault):
            raise item.error
        return item

    def reset(self) -> None:
        self._native.reset()
