from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.checkpoint import ModelMetadataDumper
from fairseq2.gang import create_fake_gangs
from fairseq2.models import ModelFamily
from fairseq2.runtime.dependency import DependencyContainer
from torch import Tensor

import d2v_plugin
from d2v_plugin.core.batch import Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.storage import RECORD_FILE, Record, describe_file, write_record
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.masking.random_blocks import RandomMaskConfig, RandomMaskSampler
from d2v_plugin.models.data2vec2.archs import audio_tiny, image_tiny, text_tiny
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.weights import sources
from d2v_plugin.weights.directory import ModelDirectory, write_directory
from d2v_plugin.weights.loading import load_weights


def build_training_model(config: Data2VecConfig, offset: float = 0.5) -> Data2VecModel:
    """With a criterion whose teacher is the student plus an offset."""
    model = create_model(config)
    sampler = RandomMaskSampler(RandomMaskConfig())
    criterion = Data2Vec2Criterion(
        Data2Vec2Config(teacher_scope="all", targets=TargetConfig(num_layers=1)), dict.fromkeys(Modality, sampler)
    )
    criterion.build(model)
    model.criterion = criterion
    with torch.no_grad():
        for average, current in criterion.teacher.pairs(model).values():
            average.copy_(current + offset)

    return model


def write_checkpoint(checkpoints: Path, step: int, model: Data2VecModel, *, num_shards: int = 1, suffix: str = "") -> Path:
    """As a run does, sharded as by FSDP2: ``torch.chunk`` of the first dimension, so that small tensors give fewer shards."""
    sources.library().resolve(ModelMetadataDumper).dump(checkpoints, "data2vec", model.config)
    folder = checkpoints / f"step_{step}{suffix}" / "model" / "pp_00" / "tp_00"
    folder.mkdir(parents=True)
    shards: list[dict[str, Tensor]] = [{} for _ in range(num_shards)]
    for key, tensor in model.state_dict().items():
        for shard, part in zip(shards, tensor.chunk(num_shards), strict=False):
            shard[key] = part.clone()
    for i, shard in enumerate(shards):
        torch.save(shard, folder / f"sdp_{i:02}.pt")
    step_dir = folder.parents[2]
    files = {str(path.relative_to(step_dir)): describe_file(path) for path in folder.iterdir()}
    write_record(step_dir, Record(files, {}))

    return step_dir


def forget_record(step_dir: Path) -> Path:
    """Leave a checkpoint as fairseq2 itself would write it."""
    (step_dir / RECORD_FILE).unlink()

    return step_dir


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Data2VecModel]:
    """The output directory of a run with the steps 5, 10 and an unfinished 15, and the model of step 10."""
    out = tmp_path / "run"
    models = [build_training_model(image_tiny()) for _ in range(3)]
    for step, model, suffix in zip((5, 10, 15), models, ("", "", ".tmp"), strict=True):
        write_checkpoint(out / "checkpoints", step, model, suffix=suffix)

    return out, models[1]


def same_weights(model: Data2VecModel, other: dict[str, Tensor]) -> bool:
    return all(tensor.equal(other[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/step_10", "checkpoints/step_10/model"])
def test_a_run_loads_from_its_last_complete_checkpoint(where: str, run: tuple[Path, Data2VecModel]) -> None:
    out, trained = run
    model = d2v_plugin.load(out / where)

    assert same_weights(model, trained.state_dict())
    assert model.config == trained.config
    assert model.criterion is None


def test_an_earlier_step_can_be_named(run: tuple[Path, Data2VecModel]) -> None:
    out, trained = run

    assert not same_weights(d2v_plugin.load(str(out / "checkpoints" / "step_5")), trained.state_dict())


def test_a_loaded_model_is_ready_for_use(run: tuple[Path, Data2VecModel]) -> None:
    model = d2v_plugin.load(run[0], dtype=torch.bfloat16)

    assert not model.training
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    images = torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16)
    assert model.extract_features(images).x.shape == (2, 64, 96)


def test_a_loaded_model_does_not_hang_on_its_file(run: tuple[Path, Data2VecModel]) -> None:
    out, trained = run
    model = d2v_plugin.load(out)
    for path in out.rglob("*.pt"):
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)

    assert same_weights(model, trained.state_dict())


def test_the_teachers_weights_replace_the_students(run: tuple[Path, Data2VecModel]) -> None:
    out, trained = run
    model = d2v_plugin.load(out, weights="teacher").state_dict()

    for key, tensor in trained.state_dict().items():
        if key.startswith("criterion."):
            continue
        assert model[key].equal(tensor if ".decoder." in key else tensor + 0.5), key


def test_shards_are_put_together(tmp_path: Path) -> None:
    trained = build_training_model(image_tiny())
    write_checkpoint(tmp_path, 3, trained, num_shards=5)

    assert same_weights(d2v_plugin.load(tmp_path), trained.state_dict())


def test_a_lost_shard_is_noticed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 3, build_training_model(image_tiny()), num_shards=3)
    next(folder.rglob("sdp_02.pt")).unlink()

    with pytest.raises(CheckpointError, match=r"step_3.*sdp_02\.pt is missing"):
        d2v_plugin.load(folder)
    with pytest.raises(CheckpointError, match=r"(?s)step_3.*instead of"):
        d2v_plugin.load(forget_record(folder))


def test_a_truncated_file_is_named(run: tuple[Path, Data2VecModel]) -> None:
    path = next((run[0] / "checkpoints" / "step_10").rglob("*.pt"))
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(CheckpointError, match=r"step_10/model/.*sdp_00\.pt: the checkpoint is truncated"):
        d2v_plugin.load(forget_record(run[0] / "checkpoints" / "step_10"))


def test_a_checkpoint_with_code_is_refused(run: tuple[Path, Data2VecModel]) -> None:
    torch.save({"x": os.system}, next((run[0] / "checkpoints" / "step_10").rglob("*.pt")))

    with pytest.raises(CheckpointError, match=r"asks to run or create `(posix|nt)\.system`"):
        d2v_plugin.load(forget_record(run[0] / "checkpoints" / "step_10"))


def test_weights_that_a_run_does_not_have_are_missed(tmp_path: Path) -> None:
    model = create_model(image_tiny())
    write_checkpoint(tmp_path, 1, model)
    assert same_weights(d2v_plugin.load(tmp_path), model.state_dict())

    with pytest.raises(CheckpointError, match="no teacher"):
        d2v_plugin.load(tmp_path, weights="teacher")
    with pytest.raises(ValueError, match="`weights` must be"):
        d2v_plugin.load(tmp_path, weights="both")  # type: ignore[arg-type]


def test_places_without_a_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "base.pt").touch()

    for place, message in (
        (tmp_path, "neither a converted checkpoint"),
        (tmp_path / "base.pt", r"fairseq2 recipe convert fairseq"),
        (tmp_path / "nowhere", "does not exist"),
        ("data2vec_of_my_dreams", "neither a directory nor a registered model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            d2v_plugin.load(place)


def test_a_run_without_checkpoint_says_so(run: tuple[Path, Data2VecModel]) -> None:
    for step in (5, 10):
        (run[0] / "checkpoints" / f"step_{step}").rename(run[0] / f"step_{step}")

    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        d2v_plugin.load(run[0])


def test_a_run_of_another_family_is_refused(run: tuple[Path, Data2VecModel]) -> None:
    (run[0] / "checkpoints" / "model.yaml").write_text("name: checkpoint\nmodel_family: wav2vec2\nmodel_config: {}\n")

    with pytest.raises(CheckpointError, match="`wav2vec2`"):
        d2v_plugin.load(run[0])


@pytest.mark.parametrize("kind", ["directory", "file", "run"])
def test_a_registered_name_is_loaded(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairseq2.composition import _register_library, register_in_memory_assets

    trained = build_training_model(image_tiny())
    student = {key: tensor for key, tensor in trained.state_dict().items() if not key.startswith("criterion.")}
    write_directory(tmp_path / "model", ModelDirectory(config=trained.config, student=student))
    run = write_checkpoint(tmp_path / "run", 1, trained)
    places = {"directory": tmp_path / "model", "file": tmp_path / "model" / "model.safetensors", "run": run / "model"}
    card = {"model_family": "data2vec", "model_arch": "image_tiny", "checkpoint": str(places[kind])}
    container = DependencyContainer()
    _register_library(container, no_progress=True)
    entries: list[dict[str, object]] = [{"name": "mine", **card}, {"name": "other", "model_family": "wav2vec2"}]
    register_in_memory_assets(container, "test", entries)
    monkeypatch.setattr("fairseq2.runtime.dependency._resolver", container)

    assert same_weights(d2v_plugin.load("mine"), student)
    with pytest.raises(CheckpointError, match="not a model of the family"):
        d2v_plugin.load("other")


def test_loading_changes_nothing_global(run: tuple[Path, Data2VecModel]) -> None:
    program = f"""
import d2v_plugin, torch
d2v_plugin.load({str(run[0])!r})
import fairseq2.runtime.dependency
assert fairseq2.runtime.dependency._resolver is None
assert not torch.distributed.is_initialized()
assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
import fairseq2
fairseq2.init_fairseq2()
d2v_plugin.load({str(run[0])!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_fairseq2s_own_loader_drops_the_criterion(run: tuple[Path, Data2VecModel]) -> None:
    out, trained = run
    family: Any = sources.library().resolve(ModelFamily, key="data2vec")
    model = family.load_custom_model(
        out / "checkpoints" / "step_10" / "model",
        trained.config,
        create_fake_gangs(torch.device("cpu")),
        torch.float32,
        load_rank0_only=False,
        mmap=False,
        restrict=True,
    )

    assert same_weights(model, trained.state_dict())


def continue_training(config: Data2VecConfig, source: Path, **options: Any) -> Data2VecModel:
    model = create_model(config)
    load_weights(model, source, **options)

    return model


def test_a_new_run_starts_from_a_checkpoint(run: tuple[Path, Data2VecModel]) -> None:
    out, trained = run
    config = replace(image_tiny(), dropout=0.3, layer_drop=0.1)
    model = continue_training(config, out)

    assert same_weights(model, trained.state_dict())
    assert model.config.dropout == 0.3
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in create_model(config).parameters()]


def test_a_new_run_starts_from_the_teacher(run: tuple[Path, Data2VecModel]) -> None:
    out, _ = run

    assert same_weights(
        continue_training(image_tiny(), out, weights="teacher"), d2v_plugin.load(out, weights="teacher").state_dict()
    )


def test_a_model_with_criterion_keeps_what_the_criterion_owns(run: tuple[Path, Data2VecModel]) -> None:
    out, trained = run
    model = build_training_model(image_tiny())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items() if key.startswith("criterion.")}
    load_weights(model, out)

    assert all(model.state_dict()[key].equal(tensor) for key, tensor in before.items())
    assert model.blocks[0].attn.qkv.weight.equal(trained.blocks[0].attn.qkv.weight)


def test_a_decoder_that_the_checkpoint_lacks_stays_as_initialised(
    tmp_path: Path, run: tuple[Path, Data2VecModel], caplog: pytest.LogCaptureFixture
) -> None:
    bare = replace(image_tiny(), image=replace(image_tiny().image, decoder=None))  # type: ignore[type-var]
    write_directory(tmp_path / "bare", ModelDirectory(config=bare, student=create_model(bare).state_dict()))
    model = create_model(image_tiny())
    decoder = model.frontend().decoder
    assert decoder is not None
    before = {key: tensor.clone() for key, tensor in decoder.state_dict().items()}
    with caplog.at_level("INFO"):
        load_weights(model, tmp_path / "bare")

    assert all(decoder.state_dict()[key].equal(tensor) for key, tensor in before.items())
    assert "`modality_encoders.IMAGE.decoder` is not in the checkpoint" in caplog.text

    # And the other way round.
    continue_training(bare, run[0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(image_tiny(), depth=4), r"missing:\n.*blocks\.3\.\*"),
        (replace(image_tiny(), depth=2), r"unexpected:\n.*blocks\.2\.\*"),
        (replace(image_tiny(), dim=48), r"wrong shape"),
        (replace(image_tiny(), num_heads=2), r"`num_heads` is 4 in the checkpoint, but 2 in the model"),
        (audio_tiny(), "is a model of image; a model of audio cannot"),
        (text_tiny(), "is a model of image; a model of text cannot"),
    ],
)
def test_another_model_is_refused_before_anything_is_copied(
    config: Data2VecConfig, message: str, run: tuple[Path, Data2VecModel]
) -> None:
    model = create_model(config)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    with pytest.raises(CheckpointError, match=message) as info:
        load_weights(model, run[0])
    assert len(str(info.value).splitlines()) <= 21
    assert same_weights(model, before)


def test_a_model_on_the_meta_device_is_left_to_fairseq2(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Data2VecModel(image_tiny())

    load_weights(model, tmp_path / "gone")
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.gpu
def test_models_load_onto_a_gpu(run: tuple[Path, Data2VecModel]) -> None:
    out, trained = run
    model = d2v_plugin.load(out, device="cuda")
    assert same_weights(model.cpu(), trained.state_dict())

    with torch.device("cuda"):
        model = create_model(image_tiny())
    load_weights(model, out)
    assert same_weights(model.cpu(), trained.state_dict())
