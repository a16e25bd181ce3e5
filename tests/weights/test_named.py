"""Published models by name: cards, downloads from the loopback and from local files, conversion once, and no network."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.assets import AssetStore

import d2v_plugin
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.fairseq2_private import swap_default_resolver
from d2v_plugin.models.data2vec2.archs import audio_tiny
from d2v_plugin.models.families import create_model
from d2v_plugin.weights import library as weights_library
from d2v_plugin.weights.loading import load, load_weights
from d2v_plugin.weights.named import list_named
from d2v_plugin.weights.sources import find_provenance, find_source

NAME = "data2vec2_audio_base"


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder of cards, and an empty cache."""
    cards = tmp_path / "cards"
    cards.mkdir()
    monkeypatch.setenv("FAIRSEQ2_USER_ASSET_DIR", str(cards))
    monkeypatch.setenv("FAIRSEQ2_CACHE_DIR", str(tmp_path / "cache"))
    # fairseq2 reads cards once in a process.
    weights_library._own_library.cache_clear()
    with swap_default_resolver(None):  # type: ignore[arg-type]
        yield cards
    weights_library._own_library.cache_clear()


class Handler(SimpleHTTPRequestHandler):
    requests: list[str]

    def __init__(self, requests: list[str], *args: Any, **kwargs: Any) -> None:
        self.requests = requests
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves the folder of the test; the address, and what was asked for."""
    requests: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), partial(Handler, requests, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()
    thread.join()


def write_card(user: Path, checkpoint: object, name: str = NAME, **fields: object) -> None:
    lines = [f"name: {name}@user", f"checkpoint: {checkpoint}", *(f"{key}: {value}" for key, value in fields.items())]
    (user / f"{name}.yaml").write_text("\n".join(lines) + "\n")


def converted(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "d2v_plugin").iterdir() if not path.name.startswith(".")]


def test_every_published_model_has_a_card() -> None:
    store = weights_library.library().resolve(AssetStore)
    names = list_named(weights_library.library())

    assert len(names) == 23 and all(names.values())
    for name in names:
        card = store.retrieve_card(name)
        version, modality, size = name.split("_")[:3]
        family = {"data2vec1": "data2vec1", "data2vec2": "data2vec"}[version]
        assert card.field("model_family").as_(str) == family
        address = card.field("checkpoint").as_(str)
        assert address.startswith(f"https://dl.fbaipublicfiles.com/fairseq/data2vec{'2' if version == 'data2vec2' else ''}/")
        assert card.field("checkpoint_format").as_(str) == "fairseq"
        assert card.field("license").as_(str) == ("CC-BY-NC" if modality == "image" else "MIT")
        assert size in ("base", "large", "huge")
        is_ctc = modality == "audio" and name.split("_")[-1] in ("10m", "100h", "960h")
        assert card.has_field("labels") == is_ctc
        assert card.has_field("files") == (modality == "text")
    assert len({store.retrieve_card(name).field("checkpoint").as_(str) for name in names}) == 23


def test_a_model_is_downloaded_and_converted_once(
    user: Path, tmp_path: Path, server: tuple[str, list[str]], fairseq_checkpoint: Any
) -> None:
    address, requests = server
    path = fairseq_checkpoint("audio")
    write_card(user, f'"{address}/{path.name}"', sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    model = d2v_plugin.load(NAME)
    assert requests == [f"/{path.name}"]
    (folder,) = converted(tmp_path)
    assert folder.name.startswith(f"{NAME}-")
    source = (folder / "config.json").read_text()
    assert '"name": "data2vec2_audio_base"' in source and '"license": "MIT"' in source and "LibriSpeech" in source
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    # A second use needs neither the network nor the original.
    path.unlink()
    again = d2v_plugin.load(NAME, weights="teacher")
    assert requests == [f"/{path.name}"]
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert model.config == again.config


def test_a_local_file_is_converted_anew_when_it_changes(user: Path, tmp_path: Path, fairseq_checkpoint: Any) -> None:
    path = fairseq_checkpoint("audio")
    write_card(user, path)
    first = load(NAME).state_dict()
    content = torch.load(path, weights_only=True)
    content["model"]["blocks.0.norm1.bias"] += 1.0
    torch.save(content, path)
    os.utime(path, ns=(1, 1))

    second = load(NAME).state_dict()
    assert torch.allclose(second["blocks.0.norm1.bias"], first["blocks.0.norm1.bias"] + 1.0)
    assert len(converted(tmp_path)) == 2


def test_a_name_starts_a_run_and_has_a_configuration(user: Path, fairseq_checkpoint: Any) -> None:
    write_card(user, fairseq_checkpoint("audio"))

    model = create_model(find_source(NAME).config)
    load_weights(model, NAME)
    assert model.blocks[0].norm1.weight.equal(load(NAME).blocks[0].norm1.weight)  # type: ignore[operator, union-attr]
    assert find_provenance(NAME) is None
    with pytest.raises(CheckpointError, match="does not hold the weights of this model"):
        load_weights(create_model(audio_tiny()), NAME)


def test_the_dictionary_of_a_fine_tuned_model_comes_along(
    user: Path, server: tuple[str, list[str]], tmp_path: Path, fairseq_checkpoint: Any
) -> None:
    def tune(content: dict[str, Any]) -> None:
        pretrained = {key: t for key, t in content["model"].items() if key != "_ema" and ".decoder." not in key}
        content["model"] = {f"w2v_encoder.w2v_model.{key}": tensor for key, tensor in pretrained.items()}
        content["model"] |= {"w2v_encoder.proj.weight": torch.ones(6, 36), "w2v_encoder.proj.bias": torch.ones(6)}
        content["cfg"] = {"model": {"_name": "wav2vec_ctc", "w2v_args": content["cfg"], "normalize": True}}

    address, _ = server
    path = fairseq_checkpoint("audio", tune)
    (tmp_path / "dict.ltr.txt").write_text("| 9\nE 5\n")
    write_card(user, f'"{address}/{path.name}"', f"{NAME}_960h", labels=f'"{address}/dict.ltr.txt"')

    provenance = find_provenance(f"{NAME}_960h")
    assert provenance is not None and provenance.labels is not None
    assert provenance.labels.names == ["<blank>", "<pad>", "</s>", "<unk>", "|", "E"]
    assert provenance.sections["criterion"]["name"] == "ctc"


def test_the_vocabulary_of_a_text_model_lies_beside_its_weights(user: Path, tmp_path: Path, fairseq_checkpoint: Any) -> None:
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        (tmp_path / name).write_text("{}")
    files = "[dict.txt, encoder.json, vocab.bpe]".replace("[", f"[{tmp_path}/").replace(", ", f", {tmp_path}/")
    write_card(user, fairseq_checkpoint("text"), "data2vec2_text_base", files=files)

    load("data2vec2_text_base")
    (folder,) = converted(tmp_path)
    assert {"dict.txt", "encoder.json", "vocab.bpe"} <= {path.name for path in folder.iterdir()}


def _load(name: str, barrier: Any) -> None:
    weights_library._own_library.cache_clear()
    barrier.wait()
    load(name)


def test_several_processes_convert_once(
    user: Path, tmp_path: Path, server: tuple[str, list[str]], fairseq_checkpoint: Any
) -> None:
    address, requests = server
    write_card(user, f'"{address}/{fairseq_checkpoint("audio").name}"')
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_load, args=(NAME, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert requests == ["/audio.pt"]
    assert len(converted(tmp_path)) == 1


def test_without_a_network_one_line_says_so_at_once(user: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_card(user, f'"http://someone:secret@127.0.0.1:{port}/base_libri.pt"')

    started = time.monotonic()
    with pytest.raises(CheckpointError) as info:
        load(NAME)
    assert time.monotonic() - started < 5.0
    message = str(info.value)
    assert "\n" not in message and "secret" not in message
    assert message.startswith(f"`{NAME}` could not be downloaded from http://")
    assert f"`{NAME}@user`" in message and "other_models.md" in message
    assert not converted(tmp_path)


def test_a_missing_file_is_called_by_its_status(user: Path, server: tuple[str, list[str]]) -> None:
    write_card(user, f'"{server[0]}/gone.pt"')

    with pytest.raises(CheckpointError, match=r"could not be downloaded from http.*404"):
        load(NAME)
    assert server[1] == ["/gone.pt"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"checkpoint": "/nowhere/base.pt"}, r"is to be read from /nowhere/base\.pt, which does not exist"),
        ({"checkpoint_format": "timm"}, "`checkpoint_format` must be fairseq, but is 'timm'"),
        ({"sha256": "abc"}, r"is not the file of `data2vec2_audio_base`: its SHA-256 is \w+, but the card says abc"),
        ({"labels": "/nowhere/dict"}, "which does not exist"),
        ({"files": "[/nowhere/dict]"}, "which does not exist"),
        ({"checkpoint": "gopher://x/y"}, "could not be downloaded from gopher://x/y"),
    ],
)
def test_mistakes_in_cards(fields: dict[str, str], message: str, user: Path, fairseq_checkpoint: Any) -> None:
    write_card(user, **{"checkpoint": fairseq_checkpoint("audio"), **fields})

    with pytest.raises(CheckpointError, match=message) as info:
        load(NAME)
    assert "\n" not in str(info.value)


def test_a_cache_that_cannot_be_written(user: Path, tmp_path: Path, fairseq_checkpoint: Any) -> None:
    write_card(user, fairseq_checkpoint("audio"))
    (tmp_path / "cache").write_text("")

    with pytest.raises(CheckpointError, match="cannot be kept in"):
        load(NAME)
