"""One command on a folder plans a run and trains it; one more fine-tunes it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from d2v_plugin.verbs.own import calibration
from d2v_plugin.verbs.own.calibration import Calibration, TooLargeError

QUICK = ["regime.num_steps=2", "criterion.config.num_views=1", "pictures.enabled=false", "common.torch.num_threads=1"]
TUNED = ["regime.num_steps=2", "pictures.enabled=false", "common.torch.num_threads=1"]


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def find_next(screen: str, verb: str) -> list[str]:
    """The command of a summary's last lines, as it stands there."""
    (line,) = (line for line in screen.splitlines() if line.startswith(f"  fairseq2 recipe {verb} "))

    return shlex.split(line)[1:]


@pytest.mark.parametrize("name", ["photos", "sounds", "texts"])
def test_a_folder_is_learned_from_fine_tuned_and_scored(name: str, command: Any, tmp_path: Path, request: Any) -> None:
    folder, out = request.getfixturevalue(name), tmp_path / "run"

    outcome = command("recipe", "pretrain", out, "--no-rich", "--config", f"data={folder}", *QUICK)

    assert outcome.status == 0, outcome.err
    assert "Finished after 2 updates." in outcome.out
    accuracies = json.loads((out / "summary.json").read_text())["accuracies"]
    assert set(accuracies) >= {"pre-trained", "random init"} and "probe_linear" in accuracies["pre-trained"]
    assert json.loads((out / "data" / "report.json").read_text())["num_dropped"] >= 1  # what is broken
    for what in ("data", "labels", "model", "input", "method", "batch", "rate", "teacher", "length", "machine"):
        assert re.search(rf"^{what} +.+\[.+\]$", outcome.out, re.MULTILINE), what

    # The plan is a recipe, and so is what the run writes.
    for recipe in (out / "plan.yaml", out / "config.yaml"):
        dumped = command("recipe", "train", "--config-file", recipe, "--dump-config")
        assert dumped.status == 0, dumped.err
    config = read(out / "config.yaml")
    assert config["regime"]["num_steps"] == 2 and config["criterion"]["config"]["num_views"] == 1
    if name == "sounds":
        assert config["task"]["config"]["audio"]["resample"] is True

    probed = command(*find_next(outcome.out, "evaluate"))
    assert probed.status == 0 and "linear" in probed.out, probed.err

    tuned = command(*find_next(outcome.out, "finetune"), *TUNED)
    assert tuned.status == 0, tuned.err
    assert "Finished after 2 updates." in tuned.out
    assert list((Path(f"{out}_tuned") / "predictions").glob("valid*"))
    for verb in ("evaluate", "predict"):
        following = command(*find_next(tuned.out, verb))
        assert following.status == 0, following.err


def test_the_same_command_again_follows_its_plan_and_another_one_is_told(command: Any, tmp_path: Path, photos: Path) -> None:
    words = ("recipe", "pretrain", tmp_path / "out", "--config")
    assert command(*words, f"data={photos}", *QUICK).status == 0
    plan = (tmp_path / "out" / "plan.yaml").read_bytes()

    again = command(*words, f"data={photos}", *QUICK[:1], *QUICK[1:])
    assert again.status == 0 and "Finished after 2 updates." in again.out
    assert (tmp_path / "out" / "plan.yaml").read_bytes() == plan

    other = command(*words, f"data={photos.parent}", *QUICK)
    assert other.status == 2 and "name another output directory" in other.err.splitlines()[-1]


def test_a_dataset_with_manifests_is_used_as_it_is(command: Any, tmp_path: Path, photos: Path) -> None:
    first = command("recipe", "pretrain", tmp_path / "a", "--config", f"data={photos}", *QUICK)
    assert first.status == 0, first.err
    before = {path.name: path.read_bytes() for path in (tmp_path / "a" / "data").iterdir()}

    words = ("recipe", "pretrain", tmp_path / "b", "--config", f"data={tmp_path / 'a' / 'data'}", f"init.path={tmp_path / 'a'}")
    second = command(*words, *QUICK)

    assert second.status == 0, second.err
    assert not (tmp_path / "b" / "data").exists()
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "data").iterdir()} == before


def test_a_budget_becomes_updates_which_a_resumed_run_keeps(
    command: Any, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def measure(recipe: Any, wish: Any, *, seconds: float) -> Calibration:
        calls.append(dict(recipe["task"]["config"]))
        if len(calls) == 1:
            raise TooLargeError
        return Calibration(0.05, 32, 1 << 30)

    monkeypatch.setattr(calibration, "calibrate", measure)
    words = ("recipe", "pretrain", tmp_path / "out", "--dump-config", "--config", f"data={photos}", "budget=20s")
    first = command(*words)

    assert first.status == 0, first.err
    config = YAML(typ="safe").load(first.out[first.out.index("\ntask:") :])
    num_steps = config["regime"]["num_steps"]
    assert 160 <= num_steps <= 400 and num_steps % 50 == 0
    assert config["lr_scheduler"]["config"]["num_warmup_steps"] == round(0.12 * num_steps)
    assert config["task"]["config"]["max_batch_size"] == calls[0]["batch_size"] // 2
    assert f"{num_steps} updates, 0.05 s each" in first.out and "1.0 measured" in first.out
    assert "forward passes are halved" in first.out
    assert command(*words).out.endswith(first.out[first.out.index("\ntask:") :]) and len(calls) == 2


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ([], "`data` is missing"),
        (["data={tmp}/nowhere"], "which does not exist"),
        (["data={tmp}"], "say which of them to learn from: `modality=audio` or `modality=image`"),
        (["data={tmp}", "modality=text"], "has no texts, only 2 recordings and 1 pictures"),
        (["data={tmp}/empty"], "has nothing to learn from; found: 1 x .doc"),
        (["data={tmp}", "modality=video"], "`modality` must be audio, image or text"),
        (["data={tmp}", "budget=soon"], "`budget` must be a time such as 90s, 30m, 2h or 1d"),
        (["data={tmp}", "budget=1m", "regime.num_steps=5"], "give one of them"),
        (["data={tmp}", "data={tmp}"], "`data` is given twice"),
        (["data={tmp}/empty", "regime.num_steps=many"], "found: 1 x .doc"),
    ],
)
def test_what_cannot_be_learned_from_is_told(command: Any, tmp_path: Path, settings: list[str], part: str) -> None:
    for name in ("a.wav", "b.wav", "c.png", "empty/x.doc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    outcome = command("recipe", "pretrain", tmp_path / "out", "--config", *(word.format(tmp=tmp_path) for word in settings))

    assert outcome.status == 2 and "Traceback" not in outcome.err
    assert part in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "part"),
    [([], "`init.path` is missing"), (["init.path={tmp}"], "no run with a config.yaml")],
)
def test_what_cannot_be_fine_tuned_is_told(command: Any, tmp_path: Path, settings: list[str], part: str) -> None:
    outcome = command("recipe", "finetune", tmp_path / "out", "--config", *(word.format(tmp=tmp_path) for word in settings))

    assert outcome.status == 2 and part in outcome.err.splitlines()[-1]


def test_a_recipe_file_belongs_to_train(command: Any, tmp_path: Path, tiny_recipe: Path) -> None:
    outcome = command("recipe", "pretrain", tmp_path / "out", "--config-file", tiny_recipe)

    assert outcome.status == 2 and "recipe train --config-file" in outcome.err.splitlines()[-1]
