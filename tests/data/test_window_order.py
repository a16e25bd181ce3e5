"""Updates of samples of similar length: each sample once per epoch, and little padding."""

from __future__ import annotations

import numpy as np
import pytest

from d2v_plugin.data.order import WindowOrder

LENGTHS = np.random.default_rng(0).integers(5, 60, 103)


def padding(order: WindowOrder, num_updates: int) -> float:
    """The share of padding in batches of 8."""
    batches = [LENGTHS[order.read(8 * i, 8 * i + 8).rows] for i in range(num_updates)]

    return 1 - sum(batch.sum() for batch in batches) / sum(8 * batch.max() for batch in batches)


@pytest.mark.parametrize("size", [3, 8, 103])
def test_every_epoch_has_every_row_once(size: int) -> None:
    order = WindowOrder(LENGTHS[:size], 8, 5, seed=1)

    for epoch in range(3):
        rows = order.read(epoch * size, (epoch + 1) * size)
        assert sorted(rows.rows.tolist()) == list(range(size)) and set(rows.epochs.tolist()) == {epoch}


def test_updates_hold_rows_of_similar_length_in_all_epochs() -> None:
    # 103 is no multiple of 8: the borders of updates move from epoch to epoch.
    assert padding(WindowOrder(LENGTHS, 8, 50, seed=1), 64) < 0.2 < padding(WindowOrder(LENGTHS, 8, 1, seed=1), 64)


def test_who_meets_whom_changes_with_the_epoch_and_the_seed() -> None:
    first, second = WindowOrder(LENGTHS, 8, 2, seed=1), WindowOrder(LENGTHS, 8, 2, seed=2)

    assert set(first.read(0, 8).rows.tolist()) != set(second.read(0, 8).rows.tolist())
    assert set(first.read(0, 8).rows.tolist()) != set(first.read(104, 112).rows.tolist())
    assert first.read(40, 48).rows.tolist() == WindowOrder(LENGTHS, 8, 2, seed=1).read(40, 48).rows.tolist()
