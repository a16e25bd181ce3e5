"""Settings are chosen for the data, the machine and the time, and their memory is estimated before anything is built."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Modality
from d2v_plugin.verbs.own.facts import Data, Machine, read_machine
from d2v_plugin.verbs.own.folder import look_at
from d2v_plugin.verbs.own.memory import estimate_memory, halve_pass
from d2v_plugin.verbs.own.plan import choose_ema, choose_intervals, choose_size, make_plan
from d2v_plugin.verbs.own.plan_file import wait_for_plan
from d2v_plugin.verbs.own.wish import format_seconds, parse_budget
from d2v_plugin.verbs.own.writing import choose_balanced

CPU = Machine("cpu", "CPU", 2, 8 << 30, 1)
GPU = Machine("cuda", "H200", 16, 139 << 30, 1)
IMAGES = Data(Path("x"), Modality.IMAGE, 200_000, side=300)
SOUNDS = Data(Path("x"), Modality.AUDIO, 100_000, lengths=(16_000, 80_000, 200_000))
TEXTS = Data(Path("x"), Modality.TEXT, 10**9, vocabulary=32_000)


def test_a_model_is_as_large_as_data_machine_and_time_are_worth() -> None:
    assert choose_size(IMAGES, CPU, 300) == "tiny" and choose_size(IMAGES, CPU, 4 * 3600) == "small"
    assert choose_size(IMAGES, GPU, 3600) == "small" and choose_size(IMAGES, GPU, 12 * 3600) == "base"
    assert choose_size(Data(Path("x"), Modality.IMAGE, 1000, side=300), GPU, 12 * 3600) == "tiny"


@pytest.mark.parametrize("data", [IMAGES, SOUNDS, TEXTS], ids=lambda data: data.modality.value)
@pytest.mark.parametrize(("machine", "seconds"), [(CPU, 300), (GPU, 3600), (GPU, 12 * 3600)])
def test_every_plan_has_a_model_and_an_estimate(data: Data, machine: Machine, seconds: int) -> None:
    plan = make_plan(data, machine, seconds=seconds, num_steps=1000)

    estimate = estimate_memory(plan.recipe, machine.device)
    assert 0.5 < estimate / 2**30 < (3 if machine is CPU else 150)
    passes = 0
    while halve_pass(plan.recipe["task"]["config"]):
        passes += 1
    assert passes >= 1 and estimate_memory(plan.recipe, machine.device) < estimate


def test_batches_are_shared_by_all_processes() -> None:
    three = Machine("cuda", "GPU", 16, 80 << 30, 3)

    assert make_plan(IMAGES, three, seconds=3600, num_steps=100).recipe["task"]["config"]["batch_size"] % 3 == 0
    assert make_plan(SOUNDS, three, seconds=3600, num_steps=100).recipe["task"]["config"]["batches_per_update"] == 3


def test_the_teacher_follows_over_the_length_of_the_run() -> None:
    assert choose_ema(1000) == {"start": 0.999, "end": 0.99975, "anneal_steps": "50%"}
    assert choose_ema(20)["start"] == 0.995 and choose_ema(10**6)["end"] == 0.99995


def test_long_runs_save_every_ten_minutes() -> None:
    assert choose_intervals(100, 300)["checkpoint_every_n_steps"] == "20%"
    assert choose_intervals(100, 12 * 3600)["checkpoint_every_n_steps"] == "1%"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5d", 129_600)])
def test_budgets_are_times(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "0m", "m", "1w", "-3h", "1h30m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="such as 90s, 30m, 2h or 1d"):
        parse_budget(text)


def test_times_are_told_to_people() -> None:
    assert [format_seconds(seconds) for seconds in (40, 720, 12_600)] == ["40 s", "12 min", "3.5 h"]


def test_probes_get_as_many_of_each_class() -> None:
    rows = choose_balanced(["a"] * 90 + ["b"] * 10 + [None], 40)

    assert sum(row < 90 for row in rows) == 20 and sum(row >= 90 for row in rows) == 10 and 100 not in rows


def test_the_machine_is_what_fairseq2_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRSEQ2_DEVICE", "cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

    machine = read_machine()

    assert machine.device == "cpu" and machine.num_processes == 2 and machine.memory > 0


def test_other_processes_wait_for_the_plan_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    waiting = threading.Thread(target=wait_for_plan, args=(tmp_path / "plan.yaml",))
    waiting.start()
    assert waiting.is_alive()
    (tmp_path / "plan.yaml").write_text("")
    waiting.join(timeout=10)

    assert not waiting.is_alive()


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")

    return folder


@pytest.mark.parametrize(
    ("names", "has_classes", "note"),
    [
        (("a/1.png", "a/2.png", "b/3.png"), True, None),
        (("a/1.png", "2.png", "b/3.png"), False, "1 files lie beside them"),
        (("a/1.png", "b/3.png"), False, "none has two files"),
        (("1.png", "2.png"), False, None),
        (("a/1.png", "a/2.png"), False, None),
    ],
)
def test_folders_are_classes_if_every_file_is_in_one(tmp_path: Path, names: Any, has_classes: bool, note: str | None) -> None:
    folder = look_at(fill(tmp_path, *names))

    assert folder.has_classes is has_classes and folder.modality is Modality.IMAGE
    assert (note in folder.notes[0]) if note else folder.notes == []


def test_of_folders_called_like_splits_the_training_one_is_taken(tmp_path: Path) -> None:
    folder = look_at(fill(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/3.png", "val/a/4.png", "val/b/5.png"))

    assert folder.path == tmp_path / "train" and folder.has_classes and len(folder.files) == 3
    assert "`train` is learned from" in folder.notes[0]


def test_a_few_texts_beside_pictures_are_an_accident(tmp_path: Path) -> None:
    folder = look_at(fill(tmp_path, *(f"{number}.jpg" for number in range(30)), "README.md"))

    assert folder.modality is Modality.IMAGE and folder.notes == ["1 texts beside them are left out"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.gz", "a.JSONL"])
def test_one_file_of_text_is_enough(tmp_path: Path, name: str) -> None:
    assert look_at(fill(tmp_path, name) / name).modality is Modality.TEXT
