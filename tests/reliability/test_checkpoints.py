"""A checkpoint is complete or it is not used; what goes wrong with one costs no other."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.logging import log
from processes import call, wait_for
from saving import KINDS, Part, load, make_manager, save, save_for_ever

import d2v_plugin
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.storage import RECORD_FILE, Record, describe_file, read_record, write_record
from d2v_plugin.training.checkpoints.hold import HoldObserver
from d2v_plugin.training.checkpoints.state_files import to_plain
from d2v_plugin.weights.directory import ModelDirectory, write_directory


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is warned about."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                found.append(record.getMessage())

    handler = Collector()
    log.logger.addHandler(handler)
    yield found
    log.logger.removeHandler(handler)


def test_kill_9_while_saving_leaves_the_last_complete_checkpoint(tmp_path: Path, warnings: list[str]) -> None:
    """At 20 random moments; also while checkpoints are deleted."""
    moments = random.Random(1)
    last, num_unfinished = 0, 0
    for _ in range(20):
        process = call(save_for_ever, tmp_path)
        wait_for(lambda goal=last + 3: (tmp_path / f"step_{goal}").exists(), "checkpoints")  # type: ignore[misc]
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()

        num_unfinished += bool(list(tmp_path.glob("*.tmp")))
        manager = make_manager(tmp_path)
        assert load(manager) >= last + 3
        assert not list(tmp_path.glob("*.tmp"))
        last = load(manager)

    assert num_unfinished >= 5, "the kills hit nothing"
    assert warnings == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


FAULTS = {"flipped": flip, "truncated": truncate, "deleted": Path.unlink}
FILES = {
    "trainer": "trainer/rank_00.pt",
    "model": "model/pp_00/tp_00/sdp_00.pt",
    "optimizer": "optimizer/pp_00/tp_00/sdp_00.pt",
    "data_reader": "data_reader/dp_00.pt",
    "record": RECORD_FILE,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_is_named_and_the_previous_checkpoint_is_used(
    kind: str, fault: str, tmp_path: Path, warnings: list[str]
) -> None:
    manager = make_manager(tmp_path)
    for step_nr in (3, 6):
        save(manager, step_nr)
    path = tmp_path / "step_6" / FILES[kind]
    FAULTS[fault](path)

    again = make_manager(tmp_path)

    assert load(again) == 3
    assert len(warnings) == 2 and "\n" not in warnings[0]
    assert path.name in warnings[0] and "step_6" in warnings[0]
    # What is no longer whole can neither be resumed from nor be counted among those to keep.
    assert again.get_step_numbers() == [3] and (tmp_path / "step_6.torn").is_dir()
    with pytest.raises(CheckpointError, match=r"step_6.* There are: 3"):
        make_manager(tmp_path, "6")


def test_if_no_checkpoint_is_whole_the_run_does_not_start_over_unasked(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    for step_nr in (3, 6):
        save(manager, step_nr)
        flip(tmp_path / f"step_{step_nr}" / FILES["model"])

    with pytest.raises(CheckpointError, match=r"--resume none starts anew.*step_6.*step_3"):
        make_manager(tmp_path)

    assert not make_manager(tmp_path, "none").has_checkpoint()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_save_that_fails_leaves_the_previous_one_and_is_tried_again(
    blocking: bool, tmp_path: Path, warnings: list[str]
) -> None:
    manager = make_manager(tmp_path)
    save(manager, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        save(manager, 6, blocking=blocking)
        manager.maybe_complete_save_operation(blocking=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert len(warnings) == 1 and "step 6 could not be written" in warnings[0] and "File too large" in warnings[0]
    assert "(step 3) is intact" in warnings[0] and not list(tmp_path.glob("*.tmp"))
    failure = manager.find_failure(6)
    assert not failure.is_fatal and re.search(r"step 6.*it goes on from step 3", str(failure))
    assert load(make_manager(tmp_path)) == 3
    save(manager, 9)
    assert manager.find_failure(9) is None
    assert load(make_manager(tmp_path)) == 9 and len(warnings) == 1


def test_what_is_saved_does_not_change_while_it_is_written(tmp_path: Path) -> None:
    manager, parts = make_manager(tmp_path), [Part(3) for _ in KINDS]

    manager.save_checkpoint(3, *parts)
    for part in parts:
        part.state["values"].zero_()
    manager.maybe_complete_save_operation(blocking=True)

    assert load(make_manager(tmp_path)) == 3


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    for _ in range(2):
        save(manager, 3)

    assert load(make_manager(tmp_path)) == 3 and [path.name for path in tmp_path.iterdir()] == ["step_3"]


def test_checkpoints_are_kept_by_number_by_age_and_by_score(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    for step_nr, score in enumerate([0.1, 0.9, 0.3, 0.2, 0.4], 1):
        save(manager, step_nr)
        manager.save_score(step_nr, score)

    def kept(*rules: int | None, hours: float | None = None, ages: dict[int, float] | None = None) -> list[int]:
        for step_nr, age in (ages or {}).items():
            folder = tmp_path / f"step_{step_nr}"
            record = read_record(folder)
            write_record(folder, Record(record.files, {**record.info, "written": time.time() - age * 3600}))
        stale = make_manager(tmp_path, keep_hours=hours).get_stale_step_numbers(*rules)
        return [step_nr for step_nr in range(1, 6) if step_nr not in stale]

    assert kept(None, None, None) == [1, 2, 3, 4, 5]
    assert kept(2, None, None) == [4, 5]
    assert kept(None, 2, None) == [2, 5]
    assert kept(None, None, 2) == [2, 4, 5]
    assert kept(None, None, None, hours=2.5, ages={1: 4, 2: 3, 3: 2, 4: 1, 5: 0}) == [3, 4, 5]
    assert kept(1, 1, None, hours=1.5) == [2, 4, 5]
    assert kept(None, None, None, hours=0.0) == [5], "the last one is never deleted"

    manager.delete_checkpoint(2)
    (tmp_path / "scores" / "step_1.txt").write_text("much")
    assert manager.load_scores() == [(0.4, 5), (0.3, 3), (0.2, 4)]


def test_a_checkpoint_stripped_to_its_model_is_still_whole(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    for step_nr in (3, 6):
        save(manager, step_nr)

    manager.delete_checkpoint(3, keep_model=True)

    assert manager.get_step_numbers() == [3, 6] and manager.get_step_numbers(exclude_model_only=True) == [6]
    with pytest.raises(CheckpointError, match="step_3 has only the model"):
        make_manager(tmp_path, "3")


class Bomb:
    """What a pickle may do when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", KINDS)
def test_loading_executes_nothing(kind: str, tmp_path: Path) -> None:
    save(make_manager(tmp_path / "run"), 3)
    folder, victim = tmp_path / "run" / "step_3", tmp_path / "executed"
    torch.save({"step": 3, "extra": Bomb(victim)}, folder / FILES[kind])
    files = {name: describe_file(folder / name) for name in FILES.values() if name != RECORD_FILE}
    write_record(folder, Record(files, read_record(folder).info))

    with pytest.raises(CheckpointError, match=r"asks to run .*Nothing of it was executed"):
        manager = make_manager(tmp_path / "run")  # whoever can write the file can write its hash
        if kind == "optimizer":
            manager.load_optimizer_state(3, torch.optim.SGD([torch.zeros(1)], lr=0.1))  # type: ignore[arg-type]
        else:
            load(manager)

    assert not victim.exists()


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`trainer/rank_00.pt.extra` .* a PosixPath"):
        make_manager(tmp_path).save_checkpoint(3, Part(3, tmp_path), *(Part(3) for _ in range(3)))

    assert to_plain({"a": [1, (2.0, "b")], 3: None}, copy=True) == {"a": [1, (2.0, "b")], 3: None}


def test_a_record_does_not_lead_out_of_its_directory(tmp_path: Path) -> None:
    save(make_manager(tmp_path / "run"), 3)
    folder = tmp_path / "run" / "step_3"
    record = read_record(folder)
    write_record(folder, Record({**record.files, "../../x": next(iter(record.files.values()))}, record.info))

    with pytest.raises(CheckpointError, match=r"`../../x` is not inside"):
        make_manager(tmp_path / "run")


def test_a_run_goes_on_from_where_it_is_told(tmp_path: Path) -> None:
    manager = make_manager(tmp_path / "a")
    for step_nr in (3, 6, 9):
        save(manager, step_nr)

    assert load(make_manager(tmp_path / "b", str(tmp_path / "a" / "step_9"))) == 9
    assert load(make_manager(tmp_path / "a")) == 9
    assert load(make_manager(tmp_path / "a", "6")) == 6
    # Those of the abandoned branch are neither overwritten nor mistaken for this one's.
    assert manager.get_step_numbers() == [3, 6] and (tmp_path / "a" / "step_9.before").is_dir()
    for source in ("7", "nowhere", str(tmp_path / "a")):
        with pytest.raises(CheckpointError, match=f"--resume {source}: .* is no checkpoint .* There are: 3, 6"):
            make_manager(tmp_path / "a", source)
    assert not make_manager(tmp_path / "a", "none").has_checkpoint() and manager.get_step_numbers() == []


def test_a_damaged_model_is_not_loaded_for_use(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    """Of a run, or as tools/convert_checkpoint.py writes it; a flipped bit in a weight breaks no format."""
    assert command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "run").status == 0
    model = d2v_plugin.load(tmp_path / "run")
    write_directory(tmp_path / "converted", ModelDirectory(config=model.config, student=model.state_dict()))
    assert same(d2v_plugin.load(tmp_path / "converted").state_dict(), model.state_dict())

    (weights,) = (tmp_path / "run" / "checkpoints" / "step_4" / "model").rglob("*.pt")
    for path, source in ((weights, "run"), (tmp_path / "converted" / "model.safetensors", "converted")):
        flip(path)
        with pytest.raises(CheckpointError, match=f"{path} is damaged: its hash"):
            d2v_plugin.load(tmp_path / source)


@pytest.mark.parametrize("file", ["model", "optimizer", "record"])
def test_a_damaged_last_checkpoint_is_passed_over_by_whatever_reads_a_run(
    file: str, command: Any, tiny_recipe: Path, tmp_path: Path, warnings: list[str]
) -> None:
    """By resuming, load, evaluate and init.path alike; but not where it is named."""
    run, words = tmp_path / "run", ["recipe", "train", "--config-file", tiny_recipe]
    settings = ["regime.checkpoint_every_n_steps=2"]
    assert command(*words, run, "--config", *settings).status == 0
    warnings.clear()
    expected = d2v_plugin.load(run / "checkpoints" / "step_2").state_dict()
    assert not same(d2v_plugin.load(run).state_dict(), expected) and warnings == []
    damaged = run / "checkpoints" / "step_4" / FILES[file]
    damaged.unlink()

    def warned() -> bool:
        found = [line for line in warnings if line.startswith("Skipped a checkpoint that cannot be used.") and "step_4" in line]
        warnings.clear()

        return len(found) == 1

    assert same(d2v_plugin.load(run).state_dict(), expected)
    assert warned()
    probes = ["probing.probes=[{name: knn}]", "probing.train_split=probe", "splits=[probe]", "probing.baselines=false"]
    outcome = command("recipe", "evaluate", tmp_path / "scores", "--config", f"checkpoint.path={run}", *probes)
    assert outcome.status == 0 and warned(), outcome.err
    assert (tmp_path / "scores" / "scores.json").read_text().count("checkpoints/step_2") == 1
    outcome = command(*words, tmp_path / "next", "--config", f"init.path={run}")
    assert outcome.status == 0 and warned() and "step_2/model." in "".join(outcome.err.split()), outcome.err

    step = run / "checkpoints" / "step_4"
    if file != "record":  # without one it may be fairseq2's own
        with pytest.raises(CheckpointError, match=f"{damaged} is missing"):
            d2v_plugin.load(step)
        for refused in (
            command("recipe", "evaluate", tmp_path / "other", "--config", f"checkpoint.path={step}", *probes),
            command(*words, tmp_path / "third", "--config", f"init.path={step}"),
        ):
            assert refused.status == 2 and refused.err.splitlines()[-1].endswith(f"{damaged} is missing.")

    outcome = command(*words, run, "--config", *settings)
    assert outcome.status == 0 and warned() and "Resuming from step 2." in outcome.err


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("blocking", [True, False])
def test_what_is_not_finite_gets_no_name(blocking: bool, value: float, tmp_path: Path, warnings: list[str]) -> None:
    """Weights, the teacher among them, and moments of the optimizer; nothing is deleted for it."""
    manager = make_manager(tmp_path)
    save(manager, 3)
    parts = [Part(6) for _ in KINDS]
    parts[1].state["criterion.teacher.weight"] = torch.tensor([1.0, value])

    manager.save_checkpoint(6, *parts, saved_callback=lambda *_: pytest.fail("was saved"), blocking=blocking)
    manager.maybe_complete_save_operation(blocking=True)

    assert manager.get_step_numbers() == [3] and not list(tmp_path.glob("*.tmp"))
    assert len(warnings) == 1 and "`model.criterion.teacher.weight` of the run is not finite" in warnings[0]
    failure = manager.find_failure(6)
    assert failure.is_fatal and re.search(r"step 6.* Lower `optimizer.config.lr`.*it goes on from step 3", str(failure))
    assert load(make_manager(tmp_path)) == 3


def test_resuming_takes_the_last_finite_checkpoint(tmp_path: Path, warnings: list[str]) -> None:
    """Those of earlier versions may hold anything."""
    manager = make_manager(tmp_path)
    for step_nr in (3, 6):
        save(manager, step_nr)
    folder = tmp_path / "step_6"
    state = torch.load(folder / FILES["model"], weights_only=True)
    state["values"][7] = torch.nan
    torch.save(state, folder / FILES["model"])
    record = read_record(folder)
    write_record(folder, Record({**record.files, FILES["model"]: describe_file(folder / FILES["model"])}, record.info))

    with pytest.raises(CheckpointError, match=r"--resume 6: .*`model.values` is not finite"):
        make_manager(tmp_path, "6")
    assert load(make_manager(tmp_path)) == 3 and "`model.values` is not finite" in warnings[0]


def test_nothing_is_saved_or_deleted_while_updates_are_skipped(tmp_path: Path) -> None:
    manager = make_manager(tmp_path, last_step=15)
    for step_nr in (3, 6):
        save(manager, step_nr)

    HoldObserver(manager).after_update(9, norm=float("nan"), losses=[], skipped=True)
    for step_nr in (9, 12, 15):
        save(manager, step_nr, blocking=False)
    assert manager.get_stale_step_numbers(1, None, None) == []
    manager.maybe_complete_save_operation(blocking=True)
    assert manager.get_step_numbers() == [3, 6, 15], "the last update of a run is saved in any case"

    HoldObserver(manager).after_update(16, norm=1.0, losses=[], skipped=False)
    assert manager.get_stale_step_numbers(1, None, None) == [3, 6]


def test_a_score_that_is_no_number_is_never_the_best(tmp_path: Path, warnings: list[str]) -> None:
    manager = make_manager(tmp_path)
    for step_nr, score in enumerate((0.1, float("nan"), float("inf"), 0.2), 1):
        save(manager, step_nr)
        manager.save_score(step_nr, score)
    assert manager.load_scores() == [(0.2, 4), (0.1, 1)] and len(warnings) == 2

    (tmp_path / "scores" / "step_2.txt").write_text("nan\n")  # as earlier versions wrote it
    assert manager.load_scores() == [(0.2, 4), (0.1, 1)]
    assert manager.get_stale_step_numbers(1, 1, None) == [1, 2, 3]


def test_foreign_names_beside_checkpoints_are_left_alone(tmp_path: Path) -> None:
    save(make_manager(tmp_path), 3)
    for name in ("step_007", "step_\u0663\u0663", "step_", "step_" + "9" * 30, "step_mine.tmp", "step_-4"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_9").touch()
    before = sorted(path.name for path in tmp_path.iterdir())

    assert load(make_manager(tmp_path)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_file_in_the_place_of_an_unfinished_checkpoint_is_no_obstacle(tmp_path: Path) -> None:
    save(make_manager(tmp_path), 3)
    (tmp_path / "step_6.tmp").touch()
    manager = make_manager(tmp_path)
    (tmp_path / "step_6.tmp").touch()
    save(manager, 6)

    assert load(make_manager(tmp_path)) == 6


def rewrite_record(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / RECORD_FILE).read_text())
    change(content)
    del content["sha256"]
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / RECORD_FILE).write_text(json.dumps(content))


def test_a_checkpoint_of_a_newer_version_is_not_passed_over(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    for step_nr in (3, 6):
        save(manager, step_nr)
    rewrite_record(tmp_path / "step_6", lambda content: content.update(format_version=2, more="unknown"))

    for resume in ("auto", "6"):
        with pytest.raises(CheckpointError, match=r"step_6.*has format version 2; this package reads version 1. Use the newer"):
            make_manager(tmp_path, resume)
    assert load(make_manager(tmp_path, "3")) == 3


@pytest.mark.parametrize("name", ["ranks", "shards", "readers", "unpublished", "step"])
def test_a_record_that_lacks_something_is_damaged(name: str, tmp_path: Path) -> None:
    save(make_manager(tmp_path), 3)
    rewrite_record(tmp_path / "step_3", lambda content: content.pop(name))

    with pytest.raises(CheckpointError, match=f"step_3 is damaged: its record does not say `{name}`"):
        make_manager(tmp_path)


def test_starting_over_twice_keeps_both_runs_and_their_scores(tmp_path: Path) -> None:
    for score in (0.1, 0.2, 0.3):
        manager = make_manager(tmp_path, "none")
        save(manager, 3)
        assert manager.load_scores() == [], "that of another run"
        manager.save_score(3, score)

    kept = {path.name: (path / "score.txt").read_text() for path in tmp_path.glob("step_3.*")}
    assert kept == {"step_3.before": "0.1\n", "step_3.before.2": "0.2\n"} and manager.load_scores() == [(0.3, 3)]


def test_numbers_and_names_of_any_length_are_told_in_a_line(tmp_path: Path) -> None:
    for source in ("9" * 5000, "x" * 5000, "\u0663"):
        with pytest.raises(CheckpointError, match=r"--resume .* is no checkpoint") as caught:
            make_manager(tmp_path, source)
        assert len(str(caught.value)) < 500
