"""Runs whose data, checkpoints and results are on an object store, which fails now and then."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import call, wait_for
from saving import load, make_manager, save, save_for_ever
from store_server import SECRET, FaultyServer, be_impatient, environment_of, running_server

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.remote import RemotePath, localized, place
from d2v_plugin.data.files import Location, read_bytes
from d2v_plugin.data.store_reading import store_reader
from d2v_plugin.training.checkpoints.state_files import read_state
from tests.conftest import ROOT, Command

MODEL = "model/pp_00/tp_00/sdp_00.pt"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    with running_server() as server:
        yield server


@pytest.fixture(autouse=True)
def fresh(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, and a server that works again afterwards."""
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    store_reader.cache_clear()
    yield
    server.faults.clear()


def copy_to(folder: RemotePath, source: Path) -> RemotePath:
    for path in source.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(source).as_posix()).upload(path)
    return folder


def test_faults_cost_time_alone(server: FaultyServer, tmp_path: Path) -> None:
    bucket, data = server.bucket("faults"), random.Random(1).randbytes(300_000)
    file = tmp_path / "file"
    file.write_bytes(data)
    server.num_faults = 0

    server.faults.extend(["503", "late"])
    (bucket / "a").write_bytes(data)
    server.faults.extend(["503", "503"])
    (bucket / "b").upload(file)
    server.faults.extend(["cut", "503", "late", "cut"])
    assert (bucket / "a").read_bytes() == data
    server.faults.extend(["cut", "503"])
    assert (bucket / "b").read_range(1000, 200_000) == data[1000:200_000]
    server.faults.extend(["cut", "cut"])
    with localized(bucket) as folder:
        assert [(folder / name).read_bytes() == data for name in "ab"] == [True, True]
    assert server.num_faults == 12 and not server.faults

    server.faults.extend(["503"] * 1000)
    with pytest.raises(OSError, match=r"does not answer as it should, tried 6 times \(.*s3://faults/a"):
        (bucket / "a").read_bytes()
    server.faults.clear()


def test_many_samples_are_asked_for_at_the_same_time(server: FaultyServer) -> None:
    bucket, data = server.bucket("many"), random.Random(2).randbytes(1 << 20)
    (bucket / "a.tar").write_bytes(data)
    places = [Location(f"{bucket}/a.tar", start, 100) for start in range(0, 1 << 20, 1 << 15)]
    read_bytes(Location(f"{bucket}/a.tar", 7, 9))
    server.most_open = 0
    server.faults.extend(["slow"] * len(places))
    store_reader().request(places)

    assert all(read_bytes(place) == data[place.offset :][:100] for place in places)
    assert server.most_open > 20  # of 32; botocore's own bound is 10


def test_a_run_on_a_store_equals_a_local_one_also_after_it_was_resumed(
    command: Command, server: FaultyServer, tiny_recipe: Path, tmp_path: Path
) -> None:
    bucket = server.bucket("runs")
    copy_to(bucket / "digits", ROOT / "manifests" / "digits")
    local = str(ROOT / "manifests" / "digits")
    remote = tmp_path / "remote.yaml"
    remote.write_text(tiny_recipe.read_text().replace(local, f"{bucket}/digits"))
    out, saving = bucket / "out", ["--config", "regime.checkpoint_every_n_steps=2"]

    assert command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "local", *saving).status == 0
    server.faults.extend(["", "", "503", "", "cut", "", "503", "503", "", "", "cut"] * 6)
    first = command("recipe", "train", "--config-file", remote, out, *saving)
    server.faults.clear()
    assert first.status == 0 and f"is in {out}." in first.out
    # What is half uploaded is no checkpoint: the run goes on from the one before, and uploads it again.
    (out / "checkpoints" / "step_4" / "complete.json").unlink()
    (out / "checkpoints" / "step_4" / MODEL).write_bytes(b"half")
    again = command("recipe", "train", "--config-file", remote, out, *saving)

    assert again.status == 0 and "Resuming from step 2" in again.out + again.err
    for kind in ("model", "optimizer"):
        name = f"checkpoints/step_4/{MODEL.replace('model', kind, 1)}"
        here, there = read_state(tmp_path / "local" / name), read_state(out / name)
        assert _equal(here, there), kind
    names = list(out.find_files())
    assert {"config.yaml", "logs/rank_0.log", "summary.json", "checkpoints/model.yaml"} <= set(names)
    lines = (out / "metrics" / "train.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "local" / "metrics" / "train.jsonl").read_text().splitlines()) + 1

    features = command("recipe", "extract", bucket / "features", "--config", f"checkpoint.path={out}", "split=valid")
    assert features.status == 0 and "index.json" in (bucket / "features").find_files()
    told = "".join(outcome.out + outcome.err for outcome in (first, again, features))
    logged = "".join((out / name).read_text() for name in names if name.endswith((".log", ".yaml", ".json")))
    assert SECRET not in told + logged and "AKIAIOSFODNN7EXAMPLE" not in told + logged


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def test_checkpoints_are_replaced_kept_and_removed_as_on_a_disk(server: FaultyServer) -> None:
    folder = server.bucket("kept") / "run"
    manager = make_manager(folder)
    for step_nr in (1, 2, 3, 3):
        save(manager, step_nr)
    manager.delete_checkpoint(1)
    manager.delete_checkpoint(2, keep_model=True)
    manager.save_score(3, 0.5)

    assert load(make_manager(folder)) == 3 and manager.load_scores() == [(0.5, 3)]
    assert {name.partition("/")[0] for name in folder.find_files()} == {"step_2", "step_3", "scores"}
    assert {name.split("/")[1] for name in folder.find_files() if name.startswith("step_2")} == {"model", "complete.json"}
    (folder / "step_3" / "trainer" / "rank_00.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"s3://kept/run/step_3/trainer/rank_00.pt is truncated"):
        make_manager(folder)
    assert make_manager(folder, "none").maybe_get_last_step_number() is None
    assert (folder / "step_3.before" / "score.txt").read_text() == "0.5\n"

    server.faults.extend(["503"] * 1000)
    save(manager, 4)
    failure = manager.find_failure(4)
    server.faults.clear()
    assert failure is not None and "does not answer as it should" in failure.reason and SECRET not in failure.reason


def save_on_store(folder: str, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    be_impatient()
    save_for_ever(place(folder))


def test_kill_9_during_an_upload_leaves_the_last_complete_checkpoint(server: FaultyServer) -> None:
    folder, moments, last = server.bucket("killed") / "run", random.Random(1), 0
    for _ in range(2):
        process = call(save_on_store, str(folder), environment_of(server.url))
        wait_for(lambda goal=last + 2: (folder / f"step_{goal}").exists(), "checkpoints")  # type: ignore[misc]
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()

        manager = make_manager(folder)
        assert load(manager) >= last + 1
        last = load(manager)
        assert all((path / "complete.json").exists() for path in folder.glob("step_*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["OUT", "--config", "dataset.config_overrides.path=s3://nowhere/x"], "s3://nowhere/x"),
        (["s3://nowhere/out"], "s3://nowhere: no such bucket."),
        (["OUT", "--checkpoint-dir", "s3://nowhere/c"], "s3://nowhere: no such bucket."),
        (["OUT", "--config", "init.path=s3://nowhere/run"], "s3://nowhere/run does not exist."),
        (["https://127.0.0.1:9/out"], "https://127.0.0.1:9/out: a web server is only read from"),
    ],
)
def test_what_is_not_there_is_told_in_a_line(
    words: list[str], message: str, command: Command, server: FaultyServer, tiny_recipe: Path, tmp_path: Path
) -> None:
    outcome = command(
        "recipe", "train", "--config-file", tiny_recipe, *[word.replace("OUT", str(tmp_path / "out")) for word in words]
    )

    lines = [line for line in outcome.err.splitlines() if "WARNING" not in line]
    assert outcome.status == 2 and len(lines) == 1 and message in lines[0]
    assert not Path("s3:").exists() and not (tmp_path / "s3:").exists()
