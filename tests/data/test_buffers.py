from __future__ import annotations

import numpy as np
import torch

from d2v_plugin.data.buffers import Buffers


def test_memory_in_use_is_never_lent_twice() -> None:
    buffers = Buffers()
    held = [torch.from_numpy(buffers.take(2, 3)[:1]).fill_(number) for number in range(3)]
    view = held[0][0, 1:]
    del held[0]
    others = [buffers.take(6).fill(9) for _ in range(3)]

    assert len(others) == 3
    assert view.tolist() == [0, 0]
    assert [tensor.tolist() for tensor in held] == [[[1] * 3], [[2] * 3]]


def test_memory_of_a_batch_that_is_gone_is_used_again() -> None:
    buffers = Buffers()
    batch = torch.from_numpy(buffers.take(4, 100))
    address = batch.data_ptr()
    del batch

    assert buffers.take(3, 100).ctypes.data == address
    assert buffers.take(3, 100).shape == (3, 100)


def test_larger_memory_takes_the_place_of_what_is_too_small() -> None:
    buffers = Buffers()
    for size in (10, 20, 30):
        assert buffers.take(size).shape == (size,)

    assert len(buffers._buffers) == 1
    assert buffers.take(5).dtype == np.float32
