"""Batches for a GPU, with objects in place of its streams: what is copied when, and what a checkpoint is told."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.ahead import AheadReader, copy_ahead
from d2v_plugin.data.composed_readers import WrappedReader
from d2v_plugin.data.image import ImageReadingConfig, Normalizer, normalize

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Numbers(WrappedReader[Batch]):
    """Batches 0, 1, 2, … of one image each; number 3 cannot be read."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> list[Batch]:
        if self.position == 3:
            raise OSError("number 3")
        self.position += 1
        return [Batch(Modality.IMAGE, torch.zeros(1, 3, 2, 2), torch.tensor([self.position - 1]))]

    def state_dict(self) -> dict[str, object]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]

    def reset(self) -> None:
        self.position = 0


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens to streams and tensors, in order."""
    found: list[Any] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            found.append(("wait", self.name, other.name))

    def move(x: Tensor, device: torch.device, *, non_blocking: bool) -> Tensor:
        found.append(("copy", device.type, non_blocking))
        return x

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(found.append(("on", stream.name))))
    monkeypatch.setattr(Tensor, "to", move)
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: found.append(("used on", stream.name)))

    return found


def test_the_next_update_is_copied_before_this_one_is_computed(events: list[Any]) -> None:
    reader = AheadReader(Numbers(), CUDA)
    copying = [("on", "side"), ("copy", "cuda", True), ("copy", "cuda", True)]
    handing_out = [("wait", "main", "side"), ("used on", "main"), ("used on", "main")]

    assert next(reader)[0].ids.tolist() == [0]
    assert events == [*copying, *handing_out, *copying]
    assert next(reader)[0].ids.tolist() == [1]


def test_a_checkpoint_knows_nothing_of_what_is_ahead(events: list[Any]) -> None:
    reader = AheadReader(Numbers(), CUDA)
    assert reader.state_dict() == {"position": 0}
    for number in range(3):
        assert next(reader)[0].ids.tolist() == [number]
        assert reader.state_dict() == {"position": number + 1}
    # What cannot be read is said when it is asked for, not an update before.
    with pytest.raises(OSError, match="number 3"):
        next(reader)
    reader.load_state_dict({"position": 1})
    assert next(reader)[0].ids.tolist() == [1]
    reader.reset()
    assert next(reader)[0].ids.tolist() == [0]


def test_without_a_gpu_nothing_is_in_between() -> None:
    reader = Numbers()
    assert copy_ahead(reader, CPU) is reader


def test_bytes_become_the_numbers_that_a_cpu_reads() -> None:
    config = ImageReadingConfig()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8))
    batch = Batch(Modality.IMAGE, images, torch.arange(2), scaling=Normalizer(config).scaling)
    batch.to(CPU)

    assert torch.equal(batch.inputs, normalize(list(images), config))
    assert batch.scaling is None
