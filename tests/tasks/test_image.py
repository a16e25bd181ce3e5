from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs, create_fake_gangs
from fairseq2.recipe.error import DatasetTypeNotValidError, RecipeError

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.data import pipeline
from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamplesError
from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig
from d2v_plugin.data.image import ImageReadingConfig
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask

DIGITS = Path(__file__).parents[2] / "manifests" / "digits"
IMAGE = ImageReadingConfig(size=16, flip=0.0, eval_resize=1.0)


def make_gangs(rank: int = 0, size: int = 1) -> Gangs:
    gangs = create_fake_gangs(torch.device("cpu"))
    object.__setattr__(gangs, "dp", type(gangs.dp)(torch.device("cpu"), rank=rank, size=size))

    return gangs


def open_reader(
    path: Path = DIGITS,
    *,
    rank: int = 0,
    size: int = 1,
    batch_size: int = 48,
    max_batch_size: int | None = None,
    seed: int = 1,
    bad_samples: BadSampleConfig | None = None,
    report: Path | None = None,
    image: ImageReadingConfig = IMAGE,
) -> DataReader[Batch]:
    config = ImagePretrainingConfig(
        batch_size=batch_size, max_batch_size=max_batch_size, image=image, bad_samples=bad_samples or BadSampleConfig()
    )
    task = ImagePretrainingTask(config).open(ImageManifest.open(ManifestConfig(path=path)), report=report)

    return task.create_train_reader(make_gangs(rank, size), seed)


def take(reader: DataReader[Batch], updates: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and inputs of each update."""
    found = []
    for _ in range(updates):
        batches = next(reader)
        found.append((torch.cat([batch.ids for batch in batches]), torch.cat([batch.inputs for batch in batches])))

    return found


def assert_same(first: list[tuple[torch.Tensor, torch.Tensor]], second: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    assert len(first) == len(second)
    for (ids, inputs), (other_ids, other_inputs) in zip(first, second, strict=True):
        assert torch.equal(ids, other_ids)
        assert torch.equal(inputs, other_inputs)


def test_an_epoch_of_digits_is_the_whole_split() -> None:
    updates = take(open_reader(), 25)

    assert updates[0][1].shape == (48, 3, 16, 16)
    assert torch.cat([ids for ids, _ in updates]).sort().values.tolist() == list(range(1200))


def test_passes_and_ranks_of_an_update_have_one_size_also_after_resuming() -> None:
    image = ImageReadingConfig(size=16, sizes=[8, 16, (8, 24)], mean=[0.5], std=[0.25])
    alone = open_reader(image=image)
    shapes = [inputs.shape[1:] for _, inputs in take(alone, 12)]
    assert {tuple(shape) for shape in shapes} == {(1, 8, 8), (1, 16, 16), (1, 8, 24)}

    for rank in range(2):
        reader = open_reader(rank=rank, size=2, max_batch_size=8, image=image)
        assert [inputs.shape[1:] for _, inputs in take(reader, 12)] == shapes
    resumed = open_reader(image=image)
    middle = open_reader(image=image)
    take(middle, 5)
    resumed.load_state_dict(middle.state_dict())
    assert_same(take(resumed, 7), take(open_reader(image=image), 12)[5:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sizes": [32, (32, 30)]},
            r"`task.config.image.sizes` has \[32, 30\], which the model's patches of 4 x 4 pixels",
        ),
        ({"mean": [0.5], "std": [0.5]}, r"are of 1 channel\(s\), but the model's `num_channels` is 3.*--channels 3"),
        ({"size": (32, 64)}, r"`task.config.image.size` is \[32, 64\], but the model takes images of 32 x 32 pixels; make it 32"),
    ],
)
def test_a_model_of_other_shapes_is_refused(changes: dict[str, Any], message: str) -> None:
    config = ImagePretrainingConfig(image=ImageReadingConfig(**{"size": 32, **changes}))

    with pytest.raises(RecipeError, match=message):
        ImagePretrainingTask(config).check_model(Data2VecModel(ARCHS["image_tiny"]()))


@pytest.mark.parametrize(("size", "max_batch_size"), [(2, None), (2, 8), (4, 3)])
def test_ranks_share_the_updates_of_one_process(size: int, max_batch_size: int | None) -> None:
    alone = take(open_reader(), 27)[24:]
    ranks = [take(open_reader(rank=rank, size=size, max_batch_size=max_batch_size), 27)[24:] for rank in range(size)]
    together = [
        (torch.cat([ids for ids, _ in shares]), torch.cat([inputs for _, inputs in shares]))
        for shares in zip(*ranks, strict=True)
    ]

    assert_same(together, alone)


def test_threads_and_prefetching_do_not_change_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = take(open_reader(), 5)
    monkeypatch.setattr(pipeline, "count_threads", lambda: 7)
    monkeypatch.setattr(pipeline, "_PREFETCH", 5)

    assert_same(take(open_reader(), 5), expected)


@pytest.mark.parametrize(("taken", "max_batch_size"), [(1, None), (24, None), (25, None), (26, 8)])
def test_a_resumed_reader_continues_exactly(taken: int, max_batch_size: int | None) -> None:
    reader = open_reader(max_batch_size=max_batch_size)
    take(reader, taken)
    state = reader.state_dict()
    expected = take(reader, 3)
    resumed = open_reader(max_batch_size=max_batch_size)
    take(resumed, 2)
    resumed.load_state_dict(state)

    assert_same(take(resumed, 3), expected)
    assert len(str(state)) < 200


def test_resuming_on_more_ranks_continues_with_the_remaining_samples() -> None:
    reader = open_reader()
    take(reader, 3)
    ((expected, _),) = take(open_reader_at(reader.state_dict(), 0, 1), 1)
    shares = [take(open_reader_at(reader.state_dict(), rank, 2), 1)[0][0] for rank in range(2)]

    assert torch.equal(torch.cat(shares), expected)


def open_reader_at(state: dict[str, object], rank: int, size: int) -> DataReader[Batch]:
    reader = open_reader(rank=rank, size=size)
    reader.load_state_dict(state)

    return reader


def test_a_checkpoint_of_other_data_or_another_seed_is_refused() -> None:
    state = open_reader(seed=2).state_dict()
    with pytest.raises(RecipeError, match="`seed` 2, but it is 1 now"):
        open_reader().load_state_dict(state)
    reader = open_reader(batch_size=40)
    take(reader, 1)
    with pytest.raises(RecipeError, match="no multiple of the 48 per update"):
        open_reader().load_state_dict(reader.state_dict())


def test_a_labelled_split_is_read_once_in_order_without_augmentation() -> None:
    dataset = ImageManifest.open(ManifestConfig(path=DIGITS))
    task = ImagePretrainingTask(ImagePretrainingConfig(batch_size=100, image=IMAGE)).open(dataset, report=None)
    batches = [batch for batches in task.create_labelled_reader(make_gangs(), "valid") for batch in batches]
    reader = task.create_labelled_reader(make_gangs(), "valid")
    next(reader)
    reader.reset()
    again = [batch for batches in reader for batch in batches]

    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(597))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    assert torch.equal(torch.cat(labels), dataset.read_labels("valid"))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(batches, again, strict=True))


def test_ranks_share_a_labelled_split_and_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageManifest.open(ManifestConfig(path=DIGITS))
    task = ImagePretrainingTask(ImagePretrainingConfig(batch_size=300, image=IMAGE)).open(dataset, report=None)
    seen: list[int] = []
    for rank in range(3):
        # The fake gang does not know how many batches the other ranks have: read the pipeline alone.
        reader = task.create_labelled_reader(make_gangs(rank, 3), "valid")
        pipeline = reader._reader._pipeline  # type: ignore[attr-defined]
        seen += [row for batch in pipeline for row in batch.ids.tolist()]

    assert sorted(seen) == list(range(597))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """200 images of which 5 are broken: empty, truncated, no image, half overwritten, and too short a header."""
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for row in range(200):
        Image.new("RGB", (20, 20), (row, 0, 0)).save(folder / f"{row}.png")
    good = (folder / "0.png").read_bytes()
    for row, data in {7: b"", 50: good[:40], 51: b"text", 120: good[:60] + b"\0" * 20, 199: good[:8]}.items():
        (folder / f"{row}.png").write_bytes(data)
    (tmp_path / "train.tsv").write_text("images\n" + "".join(f"{row}.png\n" for row in range(200)))

    return tmp_path


def test_exactly_the_broken_samples_are_dropped_and_reported(broken: Path, tmp_path: Path) -> None:
    report = tmp_path / "run" / "bad_samples.tsv"
    reader = open_reader(broken, batch_size=20, report=report)
    updates = take(reader, 20)
    (broken / "whole").mkdir()
    rows = torch.cat([ids for ids, _ in updates[:10]])

    assert rows.sort().values.tolist() == sorted(set(range(200)) - {7, 50, 51, 120, 199})
    lines = report.read_text().splitlines()
    assert sorted(int(line.split("\t")[1].split(":")[0]) - 2 for line in lines) == [7, 50, 51, 120, 199]
    # A sample keeps its id whatever became of the others: here the red channel tells which image it is.
    red = torch.cat([inputs for _, inputs in updates[:10]])[:, 0, 8, 8] * IMAGE.std[0] + IMAGE.mean[0]
    assert (red * 255).round().long().tolist() == rows.tolist()


def test_too_many_broken_samples_stop_the_run_with_the_list(broken: Path) -> None:
    reader = open_reader(broken, batch_size=20, bad_samples=BadSampleConfig(min_count=3))
    with pytest.raises(RecipeError, match=r"4 samples|5 samples") as caught:
        take(reader, 20)

    assert ".png" in str(caught.value) and "train.tsv:" in str(caught.value)


def test_a_wholly_broken_batch_gives_way_to_the_next_rows(broken: Path) -> None:
    updates = take(open_reader(broken, batch_size=1), 200)

    assert all(len(ids) == 1 for ids, _ in updates)


def test_a_split_of_broken_samples_only_ends_at_once(tmp_path: Path) -> None:
    for row in range(30):
        (tmp_path / f"{row}.png").write_text("no image")
    (tmp_path / "train.tsv").write_text(".\n" + "".join(f"{row}.png\n" for row in range(30)))
    with pytest.raises(RecipeError, match="more than the tolerated 10"):
        next(open_reader(tmp_path, batch_size=4))


@pytest.mark.parametrize(("size", "max_fraction"), [(5, 0.0), (30, 1.0)])
def test_a_split_of_broken_samples_only_ends_however_many_are_tolerated(tmp_path: Path, size: int, max_fraction: float) -> None:
    for row in range(size):
        (tmp_path / f"{row}.png").write_text("no image")
    (tmp_path / "train.tsv").write_text(".\n" + "".join(f"{row}.png\tx\n" for row in range(size)))
    limits = BadSampleConfig(max_fraction=max_fraction)
    with pytest.raises(BadSamplesError, match=rf"None of the {size} samples of .*train.tsv .*can be used[^$]*4.png"):
        next(open_reader(tmp_path, batch_size=2, bad_samples=limits))

    dataset = ImageManifest.open(ManifestConfig(path=tmp_path))
    task = ImagePretrainingTask(ImagePretrainingConfig(batch_size=2, bad_samples=limits)).open(dataset, report=None)
    with pytest.raises(BadSamplesError, match=f"None of the {size} samples"):
        next(task.create_labelled_reader(create_fake_gangs(torch.device("cpu")), "train"))
    with pytest.raises(BadSamplesError, match=f"None of the {size} samples"):
        list(task.open_rows("train").read(0, size, 4))


def test_images_of_another_size_than_the_models_are_refused_by_key() -> None:
    dataset, model = ImageManifest.open(ManifestConfig(path=DIGITS)), Data2VecModel(ARCHS["image_tiny"]())
    task = ImagePretrainingTask(ImagePretrainingConfig(image=ImageReadingConfig(size=64))).open(dataset, report=None)
    with pytest.raises(RecipeError, match=r"`task.config.image.size` is 64, but the model takes images of 32 x 32"):
        task.check_model(model)
    with pytest.raises(RecipeError, match=r"`task` reads image, which the model does not take. .* it has: audio"):
        task.check_model(Data2VecModel(ARCHS["audio_tiny"]()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": -4}, "`batch_size` must be at least 1, but is -4"),
        ({"max_batch_size": 0}, "`max_batch_size` must be at least 1, but is 0"),
        ({"image": ImageReadingConfig(mean=[0.5])}, r"`mean` and `std` must hold a number for each channel, but are \[0.5\]"),
        ({"image": ImageReadingConfig(std=[0, 0, 0])}, "`image` is not valid: `std` must be greater than 0 and at most 1e6"),
        ({"image": ImageReadingConfig(size=0)}, "`image` is not valid: `size` must be at least 1"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ensure_valid(ImagePretrainingConfig(**settings))


def test_a_dataset_of_another_family_is_refused(tmp_path: Path) -> None:
    shutil.copy(DIGITS / "digits.zip", tmp_path / "a.wav")
    (tmp_path / "train.tsv").write_text(".\na.wav\t10\n")
    audio = AudioManifest.open(ManifestConfig(path=tmp_path))
    with pytest.raises(DatasetTypeNotValidError):
        ImagePretrainingTask(ImagePretrainingConfig()).open(audio, report=None)


def test_a_reader_can_be_dropped_while_it_reads() -> None:
    # fairseq2 0.8.1 crashes when a pipeline over a Python iterator is freed with batches in flight.
    for _ in range(20):
        reader = open_reader()
        next(reader)
        reader.load_state_dict(reader.state_dict())
        next(reader)
        del reader


def test_kernels_are_timed_only_where_images_have_one_size() -> None:
    one, several = (ImagePretrainingConfig(image=ImageReadingConfig(sizes=sizes)) for sizes in ((), (32, 48)))

    assert ImagePretrainingTask(one).has_fixed_shapes and not ImagePretrainingTask(several).has_fixed_shapes
