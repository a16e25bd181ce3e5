"""`fairseq2 recipe extract` writes the features of every sample once, whatever the batches, processes and interruptions."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import d2v_plugin
from d2v_plugin.weights.directory import write_directory
from d2v_plugin.weights.export import export_encoder
from tests.reliability.processes import Ranks

ROOT = Path(__file__).parents[2]
PICTURES = [
    *("task.name=image_pretraining", "task.config={}", "dataset.family=image_manifest"),
    f"dataset.config_overrides={{path: {ROOT}/manifests/digits}}",
]


def extract(command: Any, run: Path, out: Path, *settings: str) -> Any:
    return command("recipe", "extract", out, "--config", f"checkpoint.path={run}", "common.torch.num_threads=1", *settings)


def read_index(out: Path) -> dict[str, Any]:
    return json.loads((out / "index.json").read_text())  # type: ignore[no-any-return]


def read_features(out: Path) -> dict[str, Tensor]:
    """All shards of an extraction, one after the other."""
    shards = [load_file(out / shard["file"]) for shard in read_index(out)["shards"]]

    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def test_features_are_what_the_model_computes(command: Any, short_run: Any, tmp_path: Path) -> None:
    run = short_run("digits")

    outcome = extract(command, run, tmp_path / "out", "split=probe", "features.shard_size=90", "features.layers=[0, -1]")

    assert outcome.status == 0, outcome.err
    assert f"index:     {tmp_path / 'out' / 'index.json'}" in outcome.out
    found, index = read_features(tmp_path / "out"), read_index(tmp_path / "out")
    assert found["ids"].tolist() == list(range(200)) and index["num_samples"] == 200
    assert [(shard["start"], shard["stop"]) for shard in index["shards"]] == [(0, 90), (90, 180), (180, 200)]
    assert index["shards"][2]["shapes"] == {"ids": [20], "layer_0": [20, 96], "layer_2": [20, 96]}
    assert index["settings"]["checkpoint"].endswith("step_1") and index["model"]["dim"] == 96

    # The third row of the manifest, read as a single file.
    path, offset, size = (ROOT / "manifests/digits/probe.tsv").read_text().splitlines()[4].split("\t")[0].split(":")
    picture = tmp_path / "picture.png"
    picture.write_bytes((ROOT / "manifests/digits" / path).read_bytes()[int(offset) : int(offset) + int(size)])
    features = d2v_plugin.load(run).extract_features(d2v_plugin.read_image(picture, size=32, eval_resize=1.0))
    for name, layer in (("layer_0", 0), ("layer_2", 2)):
        torch.testing.assert_close(found[name][2], features.layers[layer][0].mean(dim=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["words", "books"])
def test_padding_does_not_change_features(command: Any, short_run: Any, tmp_path: Path, name: str) -> None:
    """One sample at a time, or a few, or many that are padded."""
    settings = ["features.pooling=none", "features.layers=all", "features.shard_size=64"]
    settings.append("task.config.max_num_elements=400_000" if name == "words" else "task.config.tokens_per_sample=50")
    few = 1 if name == "words" else 4
    for size in (few, 40):
        outcome = extract(command, short_run(name), tmp_path / str(size), *settings, f"features.batch_size={size}")
        assert outcome.status == 0, outcome.err

    alone, padded = read_features(tmp_path / str(few)), read_features(tmp_path / "40")
    assert set(alone) == {"ids", "layer_0", "layer_1", "layer_2", "layer_3", "lengths"}
    assert alone["ids"].tolist() == padded["ids"].tolist() == list(range(len(alone["ids"])))
    assert len(set(alone["lengths"].tolist())) > 5
    assert alone["lengths"].equal(padded["lengths"]) and len(alone["layer_0"]) == alone["lengths"].sum()
    for layer in range(4):
        torch.testing.assert_close(padded[f"layer_{layer}"], alone[f"layer_{layer}"], atol=1e-5, rtol=1e-5)


def test_numpy_shards_hold_the_same_and_can_be_mapped(command: Any, short_run: Any, tmp_path: Path) -> None:
    settings = ["features.shard_size=50", "features.pooling=statistics", "features.top_k=2"]
    for kind, dtype in (("safetensors", "float32"), ("numpy", "float16")):
        stored = [f"features.format={kind}", f"features.dtype={dtype}"]
        outcome = extract(command, short_run("words"), tmp_path / kind, *settings, *stored)
        assert outcome.status == 0, outcome.err

    expected = read_features(tmp_path / "safetensors")["top_2"]
    folders = [tmp_path / "numpy" / shard["file"] for shard in read_index(tmp_path / "numpy")["shards"]]
    found = np.concatenate([np.load(folder / "top_2.npy", mmap_mode="r") for folder in folders])
    assert found.dtype == np.float16 and found.shape == (120, 192)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert np.concatenate([np.load(folder / "ids.npy") for folder in folders]).tolist() == list(range(120))


KILLER = """
import os, signal
import d2v_plugin.extraction.shards as shards

put_in_place, number = shards.put_in_place, [0]

def setup_fairseq2_extension(container):
    def die_before_the_second_shard(aside, target):
        number[0] += 1
        if os.environ["RANK"] == "1" and number[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        put_in_place(aside, target)

    shards.put_in_place = die_before_the_second_shard
"""


def test_two_processes_that_were_killed_and_then_one_write_what_one_writes(command: Any, short_run: Any, tmp_path: Path) -> None:
    run, out = short_run("words"), tmp_path / "out"
    settings = ["features.shard_size=20", "features.layers=all"]
    (tmp_path / "killer.py").write_text(KILLER)
    words = ["recipe", "extract", "--extension", tmp_path / "killer.py", out, "--config", f"checkpoint.path={run}", *settings]

    assert Ranks(words, tmp_path / "printed", size=2).wait()[1] == -signal.SIGKILL

    assert not read_index(out)["complete"]
    written = {path.name: path.stat().st_mtime_ns for path in (out / "features").glob("shard-*")}
    # Of the six shards the second process wrote number 1, and died over number 3, which lies there half-made.
    assert "shard-00001.safetensors" in written and not written.keys() & {"shard-00003.safetensors", "shard-00005.safetensors"}
    assert (out / "features" / ".shard-00003.safetensors.tmp").exists()

    assert extract(command, run, out, *settings).status == 0
    assert extract(command, run, tmp_path / "whole", *settings).status == 0

    assert {name: (out / "features" / name).stat().st_mtime_ns for name in written} == written
    resumed, whole = read_features(out), read_features(tmp_path / "whole")
    assert resumed.keys() == whole.keys() and all(resumed[name].equal(whole[name]) for name in whole)
    assert read_index(out) == read_index(tmp_path / "whole")
    assert sorted(path.name for path in (out / "features").iterdir()) == [f"shard-{i:05}.safetensors" for i in range(6)]


def test_features_of_other_settings_are_not_mixed(command: Any, short_run: Any, tmp_path: Path) -> None:
    assert extract(command, short_run("words"), tmp_path / "out", "features.shard_size=60").status == 0

    other = extract(command, short_run("words"), tmp_path / "out", "features.shard_size=60", "features.pooling=statistics")

    assert other.status == 2 and "Traceback" not in other.err
    assert "`pooling` was mean, but is statistics" in other.err.splitlines()[-1]


def test_a_converted_checkpoint_needs_only_the_place_of_the_data(command: Any, short_run: Any, tmp_path: Path) -> None:
    write_directory(tmp_path / "encoder", export_encoder(short_run("digits")))
    settings = ["dataset.config_overrides.path=manifests/digits", "task.config.image.eval_resize=1.0", "split=probe"]

    outcome = extract(command, tmp_path / "encoder", tmp_path / "out", *settings, "features.pooling=cls")

    assert outcome.status == 0, outcome.err
    assert extract(command, short_run("digits"), tmp_path / "run", "split=probe", "features.pooling=cls").status == 0
    torch.testing.assert_close(read_features(tmp_path / "out"), read_features(tmp_path / "run"))


def test_running_text_is_cut_into_blocks(command: Any, short_run: Any, tmp_path: Path) -> None:
    for name in ("vocabulary.json", "valid-00000.bin", "valid-00000.idx"):
        shutil.copy(ROOT / "manifests" / "books" / name, tmp_path)
    num_tokens = (tmp_path / "valid-00000.bin").stat().st_size // 2
    (tmp_path / "running.tsv").write_text(f".\nvalid-00000.bin\t{num_tokens}\n")
    settings = [f"dataset.config_overrides.path={tmp_path}", "split=running", "task.config.tokens_per_sample=120"]

    outcome = extract(command, short_run("books"), tmp_path / "out", *settings)

    assert outcome.status == 0, outcome.err
    index = read_index(tmp_path / "out")
    assert index["num_samples"] == -(-num_tokens // 119) and index["settings"]["samples"] == "blocks of at most 120 tokens"


def test_bad_samples_are_left_out_and_named(command: Any, short_run: Any, tmp_path: Path) -> None:
    from torchvision.io import write_png

    (tmp_path / "data").mkdir()
    for number in range(5):
        write_png(torch.full((3, 32, 32), 40 * number, dtype=torch.uint8), str(tmp_path / "data" / f"{number}.png"))
    (tmp_path / "data" / "3.png").write_bytes(b"no picture")
    (tmp_path / "data" / "mine.tsv").write_text(".\n" + "".join(f"{number}.png\n" for number in range(5)))

    settings = [f"dataset.config_overrides.path={tmp_path / 'data'}", "split=mine", "features.shard_size=2"]
    outcome = extract(command, short_run("digits"), tmp_path / "out", *settings)

    assert outcome.status == 0, outcome.err
    assert "4 of 5 samples in 3 shards." in outcome.out
    assert read_features(tmp_path / "out")["ids"].tolist() == [0, 1, 2, 4]
    assert [shard["missing"] for shard in read_index(tmp_path / "out")["shards"]] == [[], [3], []]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["split=tests"], "`tests` is not a known split"),
        (["features.layers=[4]"], "`features`: `layers` must be between -4 and 3, or `all`, but has 4"),
        (["features.top_k=5"], "`features`: `top_k` must be at most 4, the number of blocks, but is 5"),
        (["features.pooling=cls"], "`features.pooling` must not be cls for a model of sound"),
        (["features.format=numpy", "features.dtype=bfloat16"], "`dtype` must not be bfloat16 if `format` is numpy"),
        (["checkpoint.path=nowhere/at_all"], "nowhere/at_all does not exist"),
        (PICTURES, "reads image, which the model does not take"),
    ],
)
def test_mistakes_are_told_in_one_line(command: Any, short_run: Any, tmp_path: Path, settings: list[str], message: str) -> None:
    outcome = extract(command, short_run("words"), tmp_path / "out", *settings)

    assert outcome.status == 2 and "Traceback" not in outcome.err
    assert message in outcome.err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["safetensors", "numpy"])
@pytest.mark.parametrize("fault", ["flipped", "truncated"])
def test_a_damaged_shard_is_computed_again(command: Any, short_run: Any, tmp_path: Path, kind: str, fault: str) -> None:
    run, out, settings = (
        short_run("digits"),
        tmp_path / "out",
        ["split=probe", "features.shard_size=90", f"features.format={kind}"],
    )
    assert extract(command, run, out, *settings).status == 0
    files = [path for path in sorted((out / "features").rglob("*")) if path.suffix in (".npy", ".safetensors")]
    expected = {path: path.read_bytes() for path in files}
    damaged = next(path for path in files if "shard-00001" in str(path))
    data = bytearray(expected[damaged])
    data[-9] ^= 1
    damaged.write_bytes(data if fault == "flipped" else data[:-9])

    outcome = extract(command, run, out, *settings)

    assert outcome.status == 0 and "is damaged and is computed again" in " ".join(outcome.err.split())
    assert {path: path.read_bytes() for path in files} == expected
    assert "computed again" not in " ".join(extract(command, run, out, *settings).err.split())
