from __future__ import annotations

import numpy as np
import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.order import LengthOrder, SampleOrder, share_batch
from d2v_plugin.data.random import Purpose, draw_permutation, draw_uniform, draw_words


def read_updates(
    num_rows: int, batch_size: int, world_size: int, max_batch_size: int | None, updates: range
) -> list[list[tuple[int, int]]]:
    """(epoch, row) of each update, over all ranks."""
    found = []
    shares = [share_batch(batch_size, max_batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    for update in updates:
        pairs: list[tuple[int, int]] = []
        for share in shares:
            order = SampleOrder(num_rows, seed=3)
            for micro in range(share.num_accumulate):
                batch = order.read(*share.find_items(update * share.num_accumulate + micro))
                pairs += zip(batch.epochs.tolist(), batch.rows.tolist(), strict=True)
        found.append(pairs)

    return found


@pytest.mark.parametrize(("world_size", "max_batch_size"), [(1, None), (2, None), (4, 3), (2, 1), (12, 1)])
def test_updates_are_the_same_for_any_number_of_ranks(world_size: int, max_batch_size: int | None) -> None:
    alone = read_updates(31, 12, 1, None, range(8))

    assert read_updates(31, 12, world_size, max_batch_size, range(8)) == alone


def test_every_epoch_visits_every_sample_once_in_another_order() -> None:
    order = SampleOrder(31, seed=3)
    epochs = [order.read(31 * epoch, 31 * (epoch + 1)).rows.tolist() for epoch in range(3)]

    assert all(sorted(epoch) == list(range(31)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != SampleOrder(31, seed=4).read(0, 31).rows.tolist()


def test_a_batch_may_be_longer_than_an_epoch() -> None:
    batch = SampleOrder(3, seed=0).read(2, 10)

    assert batch.epochs.tolist() == [0, 1, 1, 1, 2, 2, 2, 3]


def test_the_order_never_changes_between_releases() -> None:
    # Checkpoints hold a position in it.
    assert draw_permutation(1, 2, Purpose.ORDER, 8).tolist() == [4, 2, 0, 6, 1, 5, 7, 3]


def test_every_purpose_has_a_stream_of_its_own_which_never_changes() -> None:
    streams = {name: int(purpose) for name, purpose in Purpose.__members__.items()}

    assert len(set(streams.values())) == len(streams)
    # Runs that resume draw from the same streams; a new purpose takes a new number.
    assert list(streams.items())[:9] == [
        ("ORDER", 0), ("AUGMENTATION", 1), ("CROP", 2), ("SPLIT", 3), ("TIES", 4),
        ("MODALITY", 5), ("RAND_AUGMENT", 6), ("ERASING", 7), ("MIXING", 8),
    ]  # fmt: skip
    draws = [tuple(draw_words(1, 2, purpose, 3, 4).tolist()) for purpose in Purpose]
    assert len(set(draws)) == len(draws)


def test_a_draw_is_numpys_philox_whatever_was_drawn_before() -> None:
    for sample, count in ((7, 5), (7, 4), (8, 1), (7, 5)):
        expected = np.random.Philox(key=np.array([2**64 - 3, 6], dtype=np.uint64), counter=(0, 0, 2, sample)).random_raw(count)
        assert draw_words(-3, 6, Purpose.CROP, sample, count).tolist() == expected.tolist()


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    draws = np.stack([draw_uniform(1, epoch, Purpose.CROP, row, 8) for epoch in range(10) for row in range(100)])

    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(draws.var() - 1 / 12) < 0.005
    assert len(np.unique(draws)) == draws.size
    assert np.abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("batch_size", "max_batch_size", "world_size", "message"),
    [(10, None, 4, "for example 8"), (2, None, 4, "for example 4"), (14, 4, 2, "`max_batch_size` to a divisor of 7"),
     (4, 0, 1, "must be positive")],
)  # fmt: skip
def test_a_batch_that_does_not_divide_is_refused(
    batch_size: int, max_batch_size: int | None, world_size: int, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        share_batch(batch_size, max_batch_size, rank=0, world_size=world_size)


def test_length_batches_are_full_and_shuffled_anew_in_every_epoch() -> None:
    lengths = np.random.default_rng(0).integers(10, 100, 200)
    rows = np.arange(1000, 1200)
    order = LengthOrder(rows, lengths, max_num_elements=300, seed=1)
    epochs = [
        [order.read(i, i + 1).rows.tolist() for i in range(e * order.num_items, (e + 1) * order.num_items)] for e in range(2)
    ]

    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == rows.tolist()
        assert all(len(batch) * lengths[np.array(batch) - 1000].max() <= 300 for batch in batches)
    assert order.num_items < 1.2 * lengths.sum() / 300 + 5
    assert epochs[0] != epochs[1]
    assert sorted(map(sorted, epochs[0])) != sorted(map(sorted, epochs[1]))
