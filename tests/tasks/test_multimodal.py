"""Batches of one modality at a time, the same on all ranks, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.data.dataset import MultimodalConfig, MultimodalManifests
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask
from d2v_plugin.tasks.multimodal import MultimodalPretrainingConfig, MultimodalPretrainingTask, MultimodalReader


class Counter:
    """A reader of numbers."""

    num_accumulate = 1

    def __init__(self, name: str) -> None:
        self.name, self.position = name, 0

    def __next__(self) -> list[tuple[str, int]]:
        self.position += 1
        return [(self.name, self.position)]

    def reset(self) -> None:
        self.position = 0

    def state_dict(self) -> dict[str, object]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def make_reader(weights: list[float], seed: int = 1) -> Any:
    return MultimodalReader({m: Counter(m.value) for m in Modality}, weights, seed)  # type: ignore[misc]


def take(reader: Iterator[Any], count: int) -> list[Any]:
    return [next(reader)[0] for _ in range(count)]


def test_turns_come_as_often_as_their_weights_say() -> None:
    names = [name for name, _ in take(make_reader([2.0, 1.0, 1.0]), 4000)]

    assert names.count("audio") / 4000 == pytest.approx(0.5, abs=0.03)
    assert names.count("image") / 4000 == pytest.approx(0.25, abs=0.03)


def test_turns_are_the_same_on_all_ranks_and_differ_between_seeds() -> None:
    assert take(make_reader([1, 1, 1]), 50) == take(make_reader([1, 1, 1]), 50)
    assert take(make_reader([1, 1, 1]), 50) != take(make_reader([1, 1, 1], seed=2), 50)


def test_a_reader_continues_where_another_stopped() -> None:
    reader = make_reader([1, 1, 1])
    take(reader, 7)
    other = make_reader([1, 1, 1])
    other.load_state_dict(reader.state_dict())

    assert take(other, 20) == take(reader, 20)
    other.reset()
    assert take(other, 5) == take(make_reader([1, 1, 1]), 5)


def test_mistakes_are_named() -> None:
    task = ImagePretrainingTask(ImagePretrainingConfig())
    with pytest.raises(RecipeError, match="one task for each of several modalities, but holds: image, image"):
        MultimodalPretrainingTask(MultimodalPretrainingConfig(), [task, task])
    with pytest.raises(RecipeError, match=r"`dataset.config_overrides.image.path` is not set"):
        MultimodalManifests.open(MultimodalConfig()).part(Modality.IMAGE)
    with pytest.raises(RecipeError, match="written with the modalities"):
        make_reader([1, 1, 1]).load_state_dict({"update": 1, "audio": {}})
    with pytest.raises(ValueError, match="`weights` must hold a positive number for each of the 0 tasks"):
        ensure_valid(MultimodalPretrainingConfig(weights=[1.0]))
