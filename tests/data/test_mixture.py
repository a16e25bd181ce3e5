"""Several datasets in one run: shares by weight, the same for all ranks, resumable, counted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.gang import create_fake_gangs
from fairseq2.recipe.error import RecipeError
from PIL import Image

from d2v_plugin.data.dataset import AudioManifest, DatasetPart, ImageManifest, ManifestConfig, TextManifest
from d2v_plugin.data.image import ImageReadingConfig
from d2v_plugin.data.order import LengthOrder, MixedOrder, SampleOrder
from d2v_plugin.tasks.audio import AudioPretrainingConfig, AudioPretrainingTask
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask
from d2v_plugin.tasks.speech_recognition import SpeechRecognitionConfig, SpeechRecognitionTask
from d2v_plugin.tasks.text import TextPretrainingConfig, TextPretrainingTask

MANIFESTS = Path(__file__).parents[2] / "manifests"


def make_gangs(rank: int = 0, size: int = 1) -> Any:
    gangs = create_fake_gangs(torch.device("cpu"))
    object.__setattr__(gangs, "dp", type(gangs.dp)(torch.device("cpu"), rank=rank, size=size))
    return gangs


def make_pictures(folder: Path, count: int, label: str = "a") -> Path:
    folder.mkdir()
    for row in range(count):
        Image.new("RGB", (16, 16), (row, 0, 0)).save(folder / f"{row}.png")
    rows = "".join(f"{row}.png\t{label}\n" for row in range(count))
    for split in ("train", "valid"):
        (folder / f"{split}.tsv").write_text(f".\n{rows}")
    return folder


def join(family: Any, *parts: tuple[Path, float | None]) -> Any:
    return family.open(ManifestConfig(parts=[DatasetPart(path=path, weight=weight) for path, weight in parts]))


@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 1.0], [1.0, 1.0, 1000.0]])
def test_an_epoch_has_so_many_items_of_each_dataset_as_its_weight_says(weights: list[float] | None) -> None:
    sizes, firsts = (40, 10, 30), (0, 40, 50)
    order = MixedOrder([SampleOrder(size, 1, first) for size, first in zip(sizes, firsts, strict=True)], weights, seed=1)
    expected = {None: (40, 10, 30), 3.0: (48, 16, 16), 1.0: (1, 1, 78)}[weights and weights[0]]
    assert tuple(order.counts) == expected

    rows = [order.read(80 * epoch, 80 * (epoch + 1)) for epoch in range(5)]
    for batch in rows:
        assert tuple(np.histogram(batch.rows, [0, 40, 50, 80])[0]) == expected
    # Each dataset goes through its own epochs, each of which has all of its rows once.
    for first, size in zip(firsts, sizes, strict=True):
        pairs = [
            (epoch, row)
            for batch in rows
            for epoch, row in zip(batch.epochs.tolist(), batch.rows.tolist(), strict=True)
            if first <= row < first + size
        ]
        assert len(set(pairs)) == len(pairs)
        for epoch in range(len(pairs) // size):
            assert {row for number, row in pairs if number == epoch} == set(range(first, first + size))
    if weights is None:
        assert all(sorted(batch.rows) == list(range(80)) for batch in rows)
    parts = [order.read(start, min(start + 7, 160)) for start in range(0, 160, 7)]
    np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), np.concatenate([rows[0].rows, rows[1].rows]))


def test_batches_of_similar_length_stay_whole() -> None:
    lengths = np.arange(1, 41)
    order = MixedOrder(
        [LengthOrder(part, lengths[part], 80, 1) for part in (np.arange(20), np.arange(20, 40))], [1.0, 1.0], seed=3
    )
    for item in range(2 * order.num_items):
        rows = order.read(item, item + 1).rows
        assert (rows < 20).all() or (rows >= 20).all()
        assert lengths[rows].max() * len(rows) <= 80


def open_images(tmp_path: Path) -> Any:
    for name, count in (("small", 6), ("large", 18)):
        if not (tmp_path / name).exists():
            make_pictures(tmp_path / name, count)
    return join(ImageManifest, (tmp_path / "small", 1.0), (tmp_path / "large", 1.0))


def test_pictures_are_the_same_for_all_ranks_and_after_a_resume(tmp_path: Path) -> None:
    dataset = open_images(tmp_path)
    config = ImagePretrainingConfig(batch_size=8, image=ImageReadingConfig(size=16))
    task = ImagePretrainingTask(config).open(dataset, report=tmp_path / "bad.tsv")

    def read(rank: int, size: int, updates: int, state: Any = None) -> tuple[list[Any], Any]:
        reader = task.create_train_reader(make_gangs(rank, size), 1)
        if state is not None:
            reader.load_state_dict(state)
        found = [next(reader)[0] for _ in range(updates)]
        return [(batch.ids.tolist(), batch.inputs) for batch in found], reader.state_dict()

    whole, _ = read(0, 1, 9)
    counts = sum(np.histogram(ids, [0, 6, 24])[0] for ids, _ in whole)
    assert tuple(counts) == (36, 36)
    halves = [read(rank, 2, 9)[0] for rank in range(2)]
    for (ids, inputs), first, second in zip(whole, *halves, strict=True):
        assert ids == first[0] + second[0]
        assert torch.equal(inputs, torch.cat([first[1], second[1]]))
    _, state = read(0, 1, 4)
    rest, _ = read(0, 1, 5, state)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(rest, whole[4:], strict=True))

    with pytest.raises(RecipeError, match=r"small \+ .*large/train.tsv has changed since the checkpoint"):
        other = join(ImageManifest, (tmp_path / "small", 2.0), (tmp_path / "large", 1.0))
        ImagePretrainingTask(config).open(other, report=None).create_train_reader(make_gangs(), 1).load_state_dict(state)
    (tmp_path / "large" / "7.png").write_bytes(b"")
    read(0, 1, 9)
    assert (
        (tmp_path / "bad.tsv").read_text().startswith(f"{tmp_path}/large/train.tsv\t9: {tmp_path}/large/7.png\tThe file is empty")
    )


def test_sound_and_text_are_mixed(tmp_path: Path) -> None:
    for name, seconds in (("a", 1), ("b", 2)):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for row in range(6):
            soundfile.write(folder / f"{row}.wav", np.full(seconds * 1000 + row, 0.1), 16_000)
            rows.append(f"{row}.wav\t{seconds * 1000 + row}\tsaid {name}\n")
        (folder / "train.tsv").write_text(".\n" + "".join(rows))
    dataset = join(AudioManifest, (tmp_path / "a", 3.0), (tmp_path / "b", 1.0))
    config = AudioPretrainingConfig(batches_per_update=1, max_num_elements=4100, min_sample_size=1)
    reader = AudioPretrainingTask(config).open(dataset, report=None).create_train_reader(make_gangs(), 1)
    found = [next(reader)[0] for _ in range(40)]
    assert all(batch.inputs.shape[1] >= (1000, 2000)[int(batch.ids[0] >= 6)] for batch in found)
    assert sum(int(batch.ids[0]) < 6 for batch in found) == 32  # of 5 items in an epoch 4, the nearest to three quarters

    speech = SpeechRecognitionTask(SpeechRecognitionConfig(batches_per_update=1)).open(dataset, report=None)
    assert "".join(speech.labels.names[2:]) == "abdis"
    assert next(speech.create_train_reader(make_gangs(), 1))[0].labels is not None
    (tmp_path / "b" / "train.ltr").write_text("b |\n" * 6)
    with pytest.raises(RecipeError, match=r"b/train.ltr is not read where several datasets are one"):
        SpeechRecognitionTask(SpeechRecognitionConfig()).open(dataset, report=None).create_train_reader(make_gangs(), 1)

    books = MANIFESTS / "books"
    shutil.copytree(books, tmp_path / "copy")
    dataset = join(TextManifest, (books, 1.0), (tmp_path / "copy", 1.0))
    for mode in ("none", "complete"):
        text = TextPretrainingConfig(batch_size=8, tokens_per_sample=64, break_mode=mode)  # type: ignore[arg-type]
        task = TextPretrainingTask(text).open(dataset, report=None)
        reader: Any = task.create_train_reader(make_gangs(), 1)
        first, last = np.diff(reader.mixture.bounds)
        assert first == last
        ids = torch.cat([next(reader)[0].ids for _ in range(4)])
        assert reader.mixture.count(ids).sum() == 32 and (reader.mixture.count(ids) > 0).all()


def test_mistakes_are_named(tmp_path: Path) -> None:
    small, other = make_pictures(tmp_path / "small", 4), make_pictures(tmp_path / "other", 4, "b")
    with pytest.raises(RecipeError, match=r"needs a positive `weight` for each dataset or for none, but has \[1.0, None\]"):
        join(ImageManifest, (small, 1.0), (other, None))
    with pytest.raises(RecipeError, match=r"small and .*other have different classes; declare the same `#classes` in both"):
        _ = join(ImageManifest, (small, None), (other, None)).class_names
    (other / "train.tsv").rename(other / "more.tsv")
    task = ImagePretrainingTask(ImagePretrainingConfig()).open(join(ImageManifest, (small, None), (other, None)), report=None)
    with pytest.raises(RecipeError, match=r"other has no train.tsv, which is to be trained on together with those of others"):
        task.create_train_reader(make_gangs(), 1)
    with pytest.raises(RecipeError, match="different vocabularies; make both with the same --tokenizer"):
        _ = join(TextManifest, (MANIFESTS / "books", None), (MANIFESTS / "glosses", None)).vocabulary
