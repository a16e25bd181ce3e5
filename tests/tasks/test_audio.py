from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs, create_fake_gangs
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.audio import AudioReadingConfig
from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.tasks.audio import AudioPretrainingTask
from d2v_plugin.tasks.audio_classification import AudioClassificationConfig, AudioClassificationTask
from d2v_plugin.tasks.audio_settings import AudioPretrainingConfig

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
    pad: bool = False,
    audio: AudioReadingConfig | None = None,
) -> DataReader[Batch]:
    config = AudioPretrainingConfig(
        batches_per_update=batches_per_update,
        max_num_elements=max_num_elements,
        min_sample_size=min_sample_size,
        max_sample_size=max_sample_size,
        pad=pad,
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


def test_padded_batches_hold_recordings_of_any_length() -> None:
    sizes = torch.from_numpy(AudioManifest.open(ManifestConfig(path=WORDS)).split("train").integers("size"))
    reader = open_reader(pad=True, min_sample_size=400)
    batches = [batch for _ in range(8) for batch in next(reader)]

    # All count as the longest, and are in random order.
    assert {len(batch.ids) for batch in batches} == {60_000 // 9000}
    assert max(int(sizes[batch.ids].max() - sizes[batch.ids].min()) for batch in batches) > 3000
    for batch in batches:
        assert batch.padding_mask is not None
        lengths = (~batch.padding_mask).sum(dim=1)
        assert torch.equal(lengths, sizes[batch.ids].clamp(max=9000)) and not batch.inputs[batch.padding_mask].any()
    model = Data2VecModel(ARCHS["audio_tiny"]())
    task = AudioPretrainingTask(AudioPretrainingConfig(pad=True)).open(
        AudioManifest.open(ManifestConfig(path=WORDS)), report=None
    )
    with pytest.raises(RecipeError, match=r"`task.config.pad` is true: set the model's `spectrogram.pad_frames`"):
        task.check_model(model)


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


def test_recordings_without_a_frame_are_bad_samples_of_every_reader(tmp_path: Path) -> None:
    """Of 399 samples the standard convolutions make nothing, of 400 one frame."""
    write_recordings(tmp_path, [8000, 399, 400, 9000])
    text = (tmp_path / "train.tsv").read_text().splitlines()
    (tmp_path / "train.tsv").write_text("\n".join([text[0], *(f"{row}\tx" for row in text[1:])]) + "\n")
    dataset, model = AudioManifest.open(ManifestConfig(path=tmp_path)), Data2VecModel(ARCHS["audio_tiny"]())
    gangs = make_gangs()
    report = tmp_path / "bad_samples.tsv"

    config = AudioPretrainingConfig(batches_per_update=1, min_sample_size=1)
    pretraining = AudioPretrainingTask(config).open(dataset, report=report)
    classification = AudioClassificationTask(AudioClassificationConfig(batches_per_update=1)).open(dataset, report=report)
    for task in (pretraining, classification):
        readers = [task.create_train_reader(gangs, 1), task.create_labelled_reader(gangs, "train")]
        rows = task.open_rows("train").read(0, 4, 4)
        task.check_model(model)
        for batches in (*(next(reader) for reader in readers), list(rows)):
            (batch,) = batches
            assert sorted(batch.ids.tolist()) == [0, 2, 3]
            assert batch.inputs.size(1) in (400, 9000)
            features = model.eval().extract_features(batch.inputs, batch.padding_mask).x
            assert features.size(1) in (1, 27)
    lines = report.read_text().splitlines()
    assert len(lines) == 6 and all("3: " in line and "too short: 399 samples, but the model needs 400" in line for line in lines)


def test_crops_shorter_than_a_frame_are_refused_by_key() -> None:
    task = AudioPretrainingTask(AudioPretrainingConfig(max_sample_size=200)).open(
        AudioManifest.open(ManifestConfig(path=WORDS)), report=None
    )
    with pytest.raises(RecipeError, match=r"`task\.config\.max_sample_size` is 200, but the model needs 400 samples"):
        task.check_model(Data2VecModel(ARCHS["audio_tiny"]()))
