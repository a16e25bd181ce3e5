from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import d2v_plugin
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec2.archs import text_tiny
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.weights.directory import ModelDirectory, read_weights, write_directory


def make_content() -> ModelDirectory:
    config = text_tiny()

    return ModelDirectory(config=config, student=create_model(config).state_dict(), info={"source": {"file": "x.pt"}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_directory(tmp_path / "model", make_content())

    return tmp_path / "model"


def test_what_is_written_is_loaded(tmp_path: Path) -> None:
    content = make_content()
    files = write_directory(tmp_path / "deep" / "down", content)

    assert [file.name for file in files] == ["complete.json", "config.json", "model.safetensors"]
    assert all(file.stat().st_mode == files[0].stat().st_mode for file in files)
    model = d2v_plugin.load(tmp_path / "deep" / "down")
    assert model.config == content.config
    assert all(tensor.equal(content.student[key]) for key, tensor in model.state_dict().items())


def test_nothing_is_overwritten_unasked(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()

    with pytest.raises(CheckpointError, match="exists already"):
        write_directory(folder, make_content())
    assert (folder / "model.safetensors").read_bytes() == before

    write_directory(folder, make_content(), force=True)
    assert (folder / "model.safetensors").read_bytes() != before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_force_replaces_nothing_but_models(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    (tmp_path / "file").touch()

    for name in ("thesis", "file"):
        with pytest.raises(CheckpointError, match="not a converted checkpoint"):
            write_directory(tmp_path / name, make_content(), force=True)
    assert (tmp_path / "thesis" / "thesis.tex").exists()


def test_an_empty_directory_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    assert write_directory(tmp_path / "model", make_content())


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("d2v_plugin.weights.directory.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        write_directory(tmp_path / "model", make_content())
    assert not list(tmp_path.iterdir())


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(depht=3), "depht"),
        (lambda c: c["model"].update(depth="deep"), "deep|depth"),
        (lambda c: c["model"].update(depth=5), r"blocks\.4\.\* \(12 keys\)"),
        (lambda c: c["model"].update(depth=10**12), "only"),
        (lambda c: c["model"].update(num_heads=5), "num_heads"),
        (lambda c: c["model"].update(text=None), "not valid"),
        (lambda c: c.pop("model"), "not valid"),
        (lambda c: c.update(format_version=2), "format version 2"),
        (lambda c: c.update(family="data3vec"), "does not describe"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, folder: Path
) -> None:
    edit(folder, change)

    with pytest.raises(CheckpointError, match=message) as info:
        d2v_plugin.load(folder)
    assert str(folder) in str(info.value)


def test_a_configuration_that_is_no_json_is_refused(folder: Path) -> None:
    for content in (b"{", b"[]", b"\xff\xfe", b"[" * 100_000):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError):
            d2v_plugin.load(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        (2**63).to_bytes(8, "little") + b"{}",
        (10**8).to_bytes(8, "little") + b"{",
        (8).to_bytes(8, "little") + b"garbage!",
        (66).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}  ' + b"\0" * 4,
        (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999]}}' + b"\0" * 4,
        (55).to_bytes(8, "little") + b'{"a":{"dtype":"X99","shape":[1],"data_offsets":[0,4]}}  ' + b"\0" * 4,
    ],
)
def test_safetensors_with_lies_in_the_header_are_refused_without_taking_memory(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a safetensors file, or a damaged one"):
        read_weights(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        d2v_plugin.load(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        d2v_plugin.load(folder)


def test_weights_that_are_no_numbers_of_the_right_kind_are_refused(folder: Path) -> None:
    state = create_model(text_tiny()).state_dict()
    state["blocks.0.norm1.weight"] = torch.ones(96, dtype=torch.int32)
    save_file(state, folder / "model.safetensors")
    (folder / "complete.json").unlink()  # whose hash is another file's

    with pytest.raises(CheckpointError, match=r"blocks\.0\.norm1\.weight: int32 instead of floating point"):
        d2v_plugin.load(folder)
