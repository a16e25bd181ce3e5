"""Resuming through the command: after damage, with a full disk, with a longer schedule, on another number of ranks."""

from __future__ import annotations

import errno
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Ranks
from states import differences, load_states, read_metrics

from d2v_plugin.training.checkpoints import state_files
from d2v_plugin.training.checkpoints.state_files import write_state
from d2v_plugin.training.unit import CriterionUnit

DIGITS = Path(__file__).parents[2] / "manifests" / "digits"
SETTINGS = ["regime.num_steps=6", "regime.checkpoint_every_n_steps=2", "lr_scheduler.config.num_warmup_steps=2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_recipe_text: str) -> Path:
    path = tmp_path_factory.mktemp("resuming") / "tiny.yaml"
    path.write_text(tiny_recipe_text)

    return path


def words(recipe: Path, out: Path, *settings: str, flags: tuple[object, ...] = ()) -> list[object]:
    return ["recipe", "train", "--no-rich", *flags, "--config-file", recipe, out, "--config", *SETTINGS, *settings]


def steps_of(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("step_*"))


def test_a_flipped_bit_costs_one_interval(command: Any, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command(*words(recipe, out)).status == 0
    expected = load_states(out, 6)
    (model,) = (out / "checkpoints" / "step_6" / "model").rglob("*.pt")
    model.write_bytes(model.read_bytes()[:-100])

    outcome = command(*words(recipe, out))

    assert outcome.status == 0 and "Resuming from step 4." in outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "Skipped a checkpoint" in line]
    assert f"{model} is truncated: it has " in line
    assert differences(load_states(out, 6), expected) == []
    assert steps_of(out) == ["step_2", "step_4", "step_6", "step_6.torn"]


def fill_disk(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """While these updates are saved."""

    def write(state: Any, path: Path) -> Any:
        if any(f"step_{step}." in str(path) for step in steps):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_state(state, path)

    monkeypatch.setattr(state_files, "write_state", write)


def test_a_full_disk_does_not_stop_training(command: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, 4)

    outcome = command(*words(recipe, tmp_path / "out"))

    assert outcome.status == 0 and "Finished after 6 updates." in outcome.out
    (line,) = [line for line in outcome.err.splitlines() if "could not be written" in line]
    assert "step 4" in line and "No space left on device" in line and "(step 2) is intact" in line
    assert steps_of(tmp_path / "out") == ["step_2", "step_6"]


def test_files_that_cannot_grow_do_not_end_a_run(command: Any, recipe: Path, tmp_path: Path) -> None:
    """Metrics, logs, TensorBoard, pictures, reports and the summary; /dev/full is a disk without room."""
    out = tmp_path / "out"
    for name in ("metrics/train.jsonl", "pictures/layers.jsonl", "suspects/rank_0.tsv", "bad_samples.tsv"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).symlink_to("/dev/full")
    (out / "tb").write_text("no folder")
    (out / "summary.json").mkdir()

    outcome = command(*words(recipe, out, "pictures.enabled=true", "regime.publish_metrics_every_n_steps=1"))

    assert outcome.status == 0 and "Traceback" not in outcome.err, outcome.err
    for what in (f"{out}/metrics/train.jsonl", f"{out}/pictures/layers.jsonl", "TensorBoard's files", f"{out}/summary.json"):
        assert "".join(f"{what} cannot be written".split()) in "".join(outcome.err.split()), what
    assert steps_of(out) == ["step_2", "step_4", "step_6"]


def test_a_last_save_that_finds_no_room_is_told_at_the_end(
    command: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a summary, which would look as if there were a result."""
    fill_disk(monkeypatch, 4, 6)
    outcome = command(*words(recipe, tmp_path / "out"))

    assert outcome.status == 0 and "Traceback" not in outcome.err and "Finished" not in outcome.out, outcome.err
    last = outcome.out.splitlines()[-1]
    assert last.startswith("Not finished: 6 updates are done, but not kept") and "No space left on device" in last
    assert "Make room and repeat the command; it goes on from step 2." in last
    assert not (tmp_path / "out" / "summary.json").exists()
    monkeypatch.undo()
    outcome = command(*words(recipe, tmp_path / "out"))
    assert outcome.status == 0 and "Resuming from step 2." in outcome.err and len(steps_of(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "summary.json").exists()


def test_the_best_the_last_and_the_youngest_are_kept(command: Any, recipe: Path, tmp_path: Path) -> None:
    probes = ["probing.probes=[{name: knn}]", "probing.train_split=probe", "probing.baselines=false"]
    rules = ["regime.score_metric=probe_knn", "regime.keep_best_n_checkpoints=1", "regime.keep_last_n_checkpoints=1"]
    settings = [*probes, *rules, "regime.validate_every_n_steps=2", "optimizer.config.lr=0.1"]

    outcome = command(*words(recipe, tmp_path / "out", *settings))

    assert outcome.status == 0, outcome.err
    scores = sorted((tmp_path / "out" / "checkpoints" / "scores").glob("*.txt"))
    best = max(scores, key=lambda path: (float(path.read_text()), path.stem)).stem
    assert steps_of(tmp_path / "out") == sorted({best, "step_6"})
    rules = ["regime.keep_last_n_checkpoints=1", "regime.keep_checkpoints_for_hours=1"]
    assert command(*words(recipe, tmp_path / "all", *rules)).status == 0 and len(steps_of(tmp_path / "all")) == 3


def test_a_longer_schedule_is_followed_when_it_is_asked_for(command: Any, recipe: Path, tmp_path: Path) -> None:
    out, longer = tmp_path / "out", ["regime.num_steps=12", "regime.publish_metrics_every_n_steps=1"]
    assert command(*words(recipe, out)).status == 0

    refused = command(*words(recipe, out, *longer))
    assert refused.status == 2 and "Traceback" not in refused.err
    assert "cycle_len was 4, is 10" in refused.err.splitlines()[-1] and "--extend-schedule" in refused.err.splitlines()[-1]

    outcome = command(*words(recipe, out, *longer, flags=("--extend-schedule",)))
    assert outcome.status == 0 and "Finished after 12 updates." in outcome.out, outcome.err
    assert command(*words(recipe, tmp_path / "whole", *longer)).status == 0
    # From there on the rates are those of a run that was as long from its start; fairseq2's would rise to their peak again.
    rates = {line["Step"]: line["Learning Rate"] for line in read_metrics(out)}
    expected = {line["Step"]: line["Learning Rate"] for line in read_metrics(tmp_path / "whole")}
    assert [rates[step] for step in range(7, 13)] == [expected[step] for step in range(7, 13)]
    assert rates[6] != expected[6]


def test_changed_settings_of_the_optimizer_are_not_ignored(command: Any, recipe: Path, tmp_path: Path) -> None:
    assert command(*words(recipe, tmp_path / "out", "regime.num_steps=4")).status == 0
    settings = ["regime.num_steps=4", "optimizer.config.weight_decay=0.5"]

    refused = command(*words(recipe, tmp_path / "out", *settings))

    assert refused.status == 2 and "weight_decay was 0.01, is 0.5" in refused.err.splitlines()[-1]
    assert command(*words(recipe, tmp_path / "out", *settings, flags=("--extend-schedule",))).status == 0


def test_changed_data_is_noticed_and_can_be_accepted(command: Any, recipe: Path, tmp_path: Path) -> None:
    """Rows in another order; what the files' folder is called does not matter."""
    (tmp_path / "data").mkdir()
    for path in DIGITS.glob("*.tsv"):
        root, rows = path.read_text().split("\n", 1)
        (tmp_path / "data" / path.name).write_text(f"{DIGITS / root}\n{rows}")
    (tmp_path / "link").symlink_to(DIGITS)
    run = functools.partial(words, recipe, tmp_path / "out", f"dataset.config_overrides.path={tmp_path / 'data'}")
    assert command(*run("regime.num_steps=4")).status == 0
    manifest = tmp_path / "data" / "train.tsv"
    root, rows = manifest.read_text().split("\n", 1)

    manifest.write_text(f"{tmp_path / 'link'}\n{rows}")
    outcome = command(*run("regime.num_steps=4"))
    assert outcome.status == 0, outcome.err

    header, lines = rows.splitlines()[:1], rows.splitlines()[1:]
    manifest.write_text("\n".join([root, *header, *reversed(lines), ""]))
    refused = command(*run("regime.num_steps=4"))
    assert refused.status == 2 and f"{manifest} has changed since" in refused.err.splitlines()[-1]
    assert "--accept-changed-data" in refused.err.splitlines()[-1]
    outcome = command(*run("regime.num_steps=4", flags=("--accept-changed-data",)))
    assert outcome.status == 0 and "Resuming from step 4." in outcome.err


def test_data_that_change_during_a_run_are_noticed_at_the_next_checkpoint(
    command: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on with what it read."""
    (tmp_path / "data").mkdir()
    root, rows = (DIGITS / "train.tsv").read_text().split("\n", 1)
    manifest = tmp_path / "data" / "train.tsv"
    manifest.write_text(f"{DIGITS / root}\n{rows}")
    compute = CriterionUnit.process_batch

    def process_batch(unit: CriterionUnit, *arguments: Any) -> Any:
        if unit.step_nr == 3:
            manifest.open("r+").truncate(0)
        return compute(unit, *arguments)

    monkeypatch.setattr(CriterionUnit, "process_batch", process_batch)

    outcome = command(*words(recipe, tmp_path / "out", f"dataset.config_overrides.path={tmp_path / 'data'}"))

    assert outcome.status == 0 and "Finished after 6 updates." in outcome.out, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "was changed while this run uses it" in line]
    assert str(manifest) in line and "it will not resume" in line


def test_a_run_can_branch_off_another_one(command: Any, recipe: Path, tmp_path: Path) -> None:
    assert command(*words(recipe, tmp_path / "a")).status == 0

    outcome = command(*words(recipe, tmp_path / "b", flags=("--resume", tmp_path / "a" / "checkpoints" / "step_4")))

    assert outcome.status == 0 and "Resuming from step 4." in outcome.err and steps_of(tmp_path / "b") == ["step_6"]
    assert differences(load_states(tmp_path / "b", 6), load_states(tmp_path / "a", 6)) == []
    outcome = command(*words(recipe, tmp_path / "b", flags=("--resume=5",)))
    assert outcome.status == 2 and outcome.err.splitlines()[-1].endswith("There are: 6.")


# With a large epsilon Adam's update is smooth in the gradient, so that rounding makes no difference.
SMOOTH = ["optimizer.config.eps=1.0", "optimizer.config.lr=0.1", "lr_scheduler={name: passthrough, config: null}"]


def run(recipe: Path, out: Path, size: int, *settings: str) -> Ranks:
    return Ranks(words(recipe, out, *SMOOTH, *settings), out.with_name(f"{out.name}_output_{size}"), size=size)


@pytest.mark.parametrize(
    "runs", [[(2, "ddp"), (1, "ddp"), (4, "ddp")], [(2, "fsdp"), (4, "fsdp"), (1, "ddp")]], ids=["replicated", "sharded"]
)
def test_a_run_goes_on_with_another_number_of_ranks(
    runs: list[tuple[int, str]], whole: Path, recipe: Path, tmp_path: Path
) -> None:
    """The samples that remain, and the same result as always on one."""
    parts = tmp_path / "parts"
    for step, (size, parallelism) in zip((2, 4, 6), runs, strict=True):
        ranks = run(recipe, parts, size, f"regime.num_steps={step}", f"trainer.data_parallelism={parallelism}")
        assert ranks.wait() == [0] * size, ranks.output()[-3000:]

    actual, expected = load_states(parts, 6), load_states(whole, 6)
    names = [name for name, value in expected.items() if isinstance(value, torch.Tensor)]
    for name in names if runs[-1][0] == 1 else [name for name in names if name.startswith(("model", "optimizer"))]:
        if "_rng_bag" not in name:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)
    for line, other in zip(read_metrics(parts), read_metrics(whole), strict=True):
        for name in ("Step", "Loss", "Gradient Norm", "Total Number of Examples"):
            assert line[name] == pytest.approx(other[name], rel=1e-5), name
    start = load_states(whole, 2)
    assert max(float((expected[name] - start[name]).abs().max()) for name in names if name.startswith("model")) > 1e-3


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """A run of one process that nothing interrupts."""
    out = recipe.parent / "whole"
    ranks = run(recipe, out, 1)
    assert ranks.wait() == [0], ranks.output()[-3000:]

    return out
