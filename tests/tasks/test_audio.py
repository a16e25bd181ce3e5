from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.data.data_pipeline import DataPipeline
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs, create_fake_gangs
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.audio import AudioReadingConfig
from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.tasks.audio import AudioPretrainingConfig, AudioPretrainingTask

WORDS = Path(__file__).parents[2] / "manifests" / "words"


def make_gangs(rank: int = 0, size: int = 1) -> Gangs:
    gangs = create_fake_gangs(torch.device("cpu"))
    object.__setattr__(gangs, "dp", type(gangs.dp)(torch.device("cpu"), rank=rank, size=size))

    return gangs


def open_reader(
    path: Path = WORDS,
    *,
    rank: int = 0,
    size: int = 1,
    batches_per_update: int = 4,
    max_num_elements: int = 60_000,
    min_sample_size: int = 5000,
    max_sample_size: int = 9000,
    audio: AudioReadingConfig | None = None,
) -> DataReader[Batch]:
    config = AudioPretrainingConfig(
        batches_per_update=batches_per_update,
        max_num_elements=max_num_elements,
        min_sample_size=min_sample_size,
        max_sample_size=max_sample_size,
        audio=audio or AudioReadingConfig(),
    )
    dataset = AudioManifest.open(ManifestConfig(path=path))

    return AudioPretrainingTask(config).open(dataset, report=None).create_train_reader(make_gangs(rank, size), 1)


def write_recordings(folder: Path, sizes: list[int], rate: int = 16_000) -> None:
    random = np.random.default_rng(0)
    for row, size in enumerate(sizes):
        soundfile.write(folder / f"{row}.wav", random.uniform(-0.5, 0.5, size), rate)
    (folder / "train.tsv").write_text(".\n" + "".join(f"{row}.wav\t{size}\n" for row, size in enumerate(sizes)))


def test_batches_fit_are_of_similar_length_and_are_cropped_to_their_shortest() -> None:
    sizes = AudioManifest.open(ManifestConfig(path=WORDS)).split("train").integers("size")
    reader = open_reader()
    for batch in (batch for _ in range(8) for batch in next(reader)):
        lengths = torch.from_numpy(sizes)[batch.ids].clamp(max=9000)
        assert len(batch.ids) * int(lengths.max()) <= 60_000
        assert batch.inputs.shape == (len(batch.ids), int(lengths.min()))
        assert int(lengths.max() - lengths.min()) < 2500
        assert batch.padding_mask is None and batch.min_length is None


def test_an_epoch_is_every_recording_that_is_long_enough() -> None:
    sizes = AudioManifest.open(ManifestConfig(path=WORDS)).split("train").integers("size")
    reader = open_reader(batches_per_update=1)
    units = reader.state_dict()["units_per_epoch"]
    assert isinstance(units, int)
    seen = torch.cat([batch.ids for _ in range(units) for batch in next(reader)])

    assert seen.sort().values.tolist() == np.flatnonzero(sizes >= 5000).tolist()


def test_crops_move_from_epoch_to_epoch(tmp_path: Path) -> None:
    write_recordings(tmp_path, [9000])
    reader = open_reader(tmp_path, batches_per_update=1, max_sample_size=6000)
    first, second = (next(reader)[0].inputs for _ in range(2))

    assert first.shape == second.shape == (1, 6000)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_the_updates_of_one_process_and_resume_on_any_number(size: int) -> None:
    alone = open_reader()
    [next(alone) for _ in range(20)]
    state = alone.state_dict()
    expected = next(alone)
    found = []
    for rank in range(size):
        reader = open_reader(rank=rank, size=size)
        reader.load_state_dict(state)
        found += next(reader)

    assert len(found) == 4
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(batch.ids, other.ids)
        assert torch.equal(batch.inputs, other.inputs)


def test_a_labelled_split_is_padded_and_read_once_by_all_ranks_together() -> None:
    dataset = AudioManifest.open(ManifestConfig(path=WORDS))
    sizes = dataset.split("valid").integers("size")
    labels = dataset.read_labels("valid")
    task = AudioPretrainingTask(AudioPretrainingConfig(max_num_elements=100_000)).open(dataset, report=None)
    seen: list[int] = []
    for rank in range(2):
        pipeline = task.create_labelled_reader(make_gangs(rank, 2), "valid")._reader._pipeline  # type: ignore[attr-defined]
        assert isinstance(pipeline, DataPipeline)
        for batch in pipeline:
            seen += batch.ids.tolist()
            assert batch.padding_mask is not None
            assert (~batch.padding_mask).sum(-1).tolist() == sizes[batch.ids].tolist()
            assert batch.min_length == sizes[batch.ids].min()
            assert batch.inputs.numel() <= 100_000
            assert torch.equal(batch.labels, labels[batch.ids])

    assert sorted(seen) == list(range(120))


def test_other_rates_need_resampling_switched_on(tmp_path: Path) -> None:
    write_recordings(tmp_path, [8000, 9000], rate=8000)
    manifest = (tmp_path / "train.tsv").read_text().splitlines()
    rows = [manifest[0], "#columns\tpath\tsize\trate", *(f"{row}\t8000" for row in manifest[1:])]
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n")

    with pytest.raises(RecipeError, match="2 recordings of 8000 samples per second, but the model takes 16000"):
        open_reader(tmp_path)
    batch = next(open_reader(tmp_path, batches_per_update=1, max_sample_size=20_000, audio=AudioReadingConfig(resample=True)))[0]
    assert batch.inputs.shape == (2, 16_000)


def test_a_bad_recording_does_not_change_the_others(tmp_path: Path) -> None:
    write_recordings(tmp_path, [8000] * 6)
    (whole,) = next(open_reader(tmp_path, batches_per_update=1))
    (tmp_path / "3.wav").write_bytes((tmp_path / "3.wav").read_bytes()[:9000])
    (rest,) = next(open_reader(tmp_path, batches_per_update=1))

    kept = whole.ids != 3
    assert torch.equal(rest.ids, whole.ids[kept])
    assert torch.equal(rest.inputs, whole.inputs[kept])


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    write_recordings(tmp_path, [8000])
    with pytest.raises(RecipeError, match=r"no recording of at least `min_sample_size` \(9,000\)"):
        open_reader(tmp_path, min_sample_size=9000)
    with pytest.raises(RecipeError, match="raise it, or crop"):
        open_reader(tmp_path, max_num_elements=7000)
