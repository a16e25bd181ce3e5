"""The task of image classification: labels, and batches that depend on seed, epoch and sample alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.gang import FakeGang, Gangs, create_fake_gangs
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.dataset import ImageManifest, ManifestConfig
from d2v_plugin.data.image import ImageReadingConfig
from d2v_plugin.data.image_mixing import MixingConfig
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.problems import ManifestError
from d2v_plugin.tasks.image_classification import (
    ImageClassificationConfig,
    ImageClassificationTask,
    find_pairs,
    find_places,
)

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def make_task(**settings: Any) -> ImageClassificationTask:
    config = ImageClassificationConfig(
        batch_size=8,
        image=ImageReadingConfig(size=16, eval_resize=1.0),
        mixing=MixingConfig(mixup=0.7, cutmix=1.0),
        erasing=0.5,
    )
    for name, value in settings.items():
        setattr(config, name, value)

    return ImageClassificationTask(config)


def open_digits() -> ImageManifest:
    return ImageManifest.open(ManifestConfig(path=ROOT / "manifests" / "digits"))


def make_gangs(rank: int, size: int) -> Gangs:
    gang = FakeGang(CPU, rank=rank, size=size)
    single = create_fake_gangs(CPU)

    return Gangs(root=gang, dp=gang, rdp=gang, sdp=single.sdp, tp=single.tp, pp=single.pp)


def read_update(task: ImageClassificationTask, rank: int = 0, size: int = 1) -> list[Batch]:
    reader = task.open(open_digits(), report=None).create_train_reader(make_gangs(rank, size), seed=3)
    next(reader)

    return next(reader)


def test_an_update_is_the_same_however_it_is_divided() -> None:
    (whole,) = read_update(make_task())

    divided = [*read_update(make_task(max_batch_size=2), 0, 2), *read_update(make_task(max_batch_size=2), 1, 2)]

    assert len(divided) == 4 and whole.labels is not None and whole.labels.shape == (8, 10)
    assert torch.equal(torch.cat([batch.inputs for batch in divided]), whole.inputs)
    assert torch.equal(torch.cat([batch.labels for batch in divided if batch.labels is not None]), whole.labels)
    assert bool(((whole.labels > 0.0) & (whole.labels < 1.0)).any()), "nothing was mixed"


def test_without_mixing_labels_are_classes() -> None:
    (batch,) = read_update(make_task(mixing=MixingConfig()))

    assert batch.labels is not None
    assert batch.labels.tolist() == open_digits().read_labels("train")[batch.ids].tolist()


def test_an_odd_number_of_images_cannot_be_mixed_in_pairs() -> None:
    with pytest.raises(RecipeError, match="has 5: choose `batch_size`"):
        make_task(batch_size=5).open(open_digits(), report=None).create_train_reader(create_fake_gangs(CPU), 1)


def test_a_sample_whose_neighbour_could_not_be_read_is_not_mixed() -> None:
    places = find_places([7, 3, 5, 9, 2, 8], [7, 5, 9, 2, 8])

    assert places == [0, 2, 3, 4, 5]
    assert find_pairs(places) == [(1, 2), (3, 4)]


def test_labels_are_indexed_as_the_trained_model_knows_them() -> None:
    task = make_task().open(open_digits(), report=None, labels=LabelSet(tuple("9876543210")))

    reader = task.create_labelled_reader(create_fake_gangs(CPU), "valid")

    (batch,) = next(reader)
    assert batch.labels is not None
    assert batch.labels.tolist() == (9 - open_digits().read_labels("valid")[batch.ids]).tolist()


def test_labels_that_the_model_does_not_know_are_listed_with_file_and_line() -> None:
    task = make_task().open(open_digits(), report=None, labels=LabelSet(tuple("012345678")))

    with pytest.raises(ManifestError, match=r"valid.tsv:\d+: the label `9` is none of the 9 known"):
        task.create_labelled_reader(create_fake_gangs(CPU), "valid")
