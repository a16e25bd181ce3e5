"""Of several checkpoints the last or the best complete one is taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.storage import RECORD_FILE, Record, describe_file, write_atomically, write_record
from d2v_plugin.weights.run_folder import find_checkpoints, find_step, list_steps, read_scores

MODEL = "model/pp_00/tp_00/sdp_00.pt"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Steps 3, 6 and 9, of which 6 is the best and 3 the next best."""
    folder = tmp_path / "run" / "checkpoints"
    write_atomically(folder / "model.yaml", "")
    for step_nr, score in ((3, 0.5), (6, 0.75), (9, 0.25)):
        step = folder / f"step_{step_nr}"
        names = (MODEL, "optimizer/pp_00/tp_00/sdp_00.pt")
        for name in names:
            write_atomically(step / name, f"{step_nr} {name}")
        write_record(step, Record({name: describe_file(step / name) for name in names}, {}))
        write_atomically(folder / "scores" / f"step_{step_nr}.txt", f"{score}\n")
    (folder / "step_12.tmp").mkdir()
    (folder / "step_10.torn").mkdir()

    return folder


def flip(step: Path) -> None:
    (step / MODEL).write_bytes((step / MODEL).read_bytes()[::-1])


def lose(step: Path) -> None:
    (step / "optimizer/pp_00/tp_00/sdp_00.pt").unlink()


def forget(step: Path) -> None:
    (step / RECORD_FILE).unlink()


def test_the_last_and_the_best_are_found(checkpoints: Path) -> None:
    for path in (checkpoints, checkpoints.parent, str(checkpoints.parent)):
        assert find_step(path) == checkpoints / "step_9" and find_step(path, best=True) == checkpoints / "step_6"
        assert find_checkpoints(path) == checkpoints
    for path in (checkpoints / "step_3", checkpoints / "step_3" / "model"):
        assert find_step(path) == checkpoints / "step_3" and find_checkpoints(path) == checkpoints
    assert find_step(checkpoints.parents[1]) is None and find_checkpoints(checkpoints.parents[1]) is None


@pytest.mark.parametrize("damage", [flip, lose, forget])
@pytest.mark.parametrize(("best", "steps"), [(False, (9, 6, 3)), (True, (6, 3, 9))])
def test_what_is_not_complete_is_passed_over(
    damage: object, best: bool, steps: tuple[int, ...], checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    damage(checkpoints / f"step_{steps[0]}")

    assert find_step(checkpoints, best=best) == checkpoints / f"step_{steps[1]}"
    assert len(caplog.records) == 1
    assert re.search(rf"Skipped a checkpoint that cannot be used\. .*step_{steps[0]}\b", caplog.text)
    # Named, it is taken as it is; whoever reads it notices.
    assert find_step(checkpoints / f"step_{steps[0]}", best=best) == checkpoints / f"step_{steps[0]}"

    for step_nr in steps[1:]:
        damage(checkpoints / f"step_{step_nr}")
    with pytest.raises(CheckpointError, match=r"holds no complete checkpoint: .*step_9.*"):
        find_step(checkpoints, best=best)


def test_steps_and_scores_are_listed(checkpoints: Path, caplog: pytest.LogCaptureFixture) -> None:
    forget(checkpoints / "step_9")
    (checkpoints / "scores" / "step_3.txt").write_text("much")

    assert list_steps(checkpoints) == [3, 6, 9] and list_steps(checkpoints, recorded=True) == [3, 6]
    assert read_scores(checkpoints, [3, 6, 9, 12]) == [(0.75, 6), (0.25, 9)] and "step_3.txt is ignored" in caplog.text
    assert list_steps(checkpoints / "nowhere") == []


def test_a_run_without_scores_says_so(checkpoints: Path) -> None:
    for path in (checkpoints / "scores").iterdir():
        path.unlink()

    with pytest.raises(CheckpointError, match="has no scores"):
        find_step(checkpoints, best=True)
