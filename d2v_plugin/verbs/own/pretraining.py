"""``fairseq2 recipe pretrain``: from a folder to a plan, which the training recipe then follows."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.verbs.own.calibration import Calibration, calibrate_fitting
from d2v_plugin.verbs.own.description import Found, describe
from d2v_plugin.verbs.own.facts import Data, Machine, read_data, read_machine
from d2v_plugin.verbs.own.folder import look_at
from d2v_plugin.verbs.own.memory import estimate_memory, halve_pass
from d2v_plugin.verbs.own.plan import choose_ema, choose_intervals, make_plan
from d2v_plugin.verbs.own.plan_file import PLAN_FILE, print_on_first_rank, read_plan, wait_for_plan, write_plan
from d2v_plugin.verbs.own.start import Start, find_start
from d2v_plugin.verbs.own.wish import Wish
from d2v_plugin.verbs.own.writing import write_manifests

_USUAL_SECONDS: Final = {"cpu": 300.0, "cuda": 3600.0}
_NUM_VALIDATIONS: Final = 5
_MEMORY_SHARE: Final = 0.7
"""Of what is free; the estimate is no measurement."""


def plan_pretraining(out: Path, wish: Wish) -> Path:
    """Plan a run, unless it has a plan already, and say what was chosen.

    :returns: the file of the plan, a recipe.
    :raises RecipeError: there is nothing to learn from, or training cannot start; says why.
    """
    path = out / PLAN_FILE
    if wish.data is None:
        raise RecipeError("`data` is missing: `fairseq2 recipe pretrain OUT --config data=FOLDER`.")
    title = f"fairseq2 recipe pretrain {wish}"
    wait_for_plan(path)
    lines = read_plan(path, title)
    if lines is None:
        lines = _make(out, wish, path, title)
    print_on_first_rank(lines)

    return path


def _make(out: Path, wish: Wish, path: Path, title: str) -> list[str]:
    machine = read_machine()
    source = wish.setting("init.path")
    start = None if source in (None, "null") else find_start(source)
    found = find_data(out, wish, start)
    seconds = wish.seconds or _USUAL_SECONDS[machine.device]
    plan = make_plan(
        found.data, machine, seconds=seconds, num_steps=wish.num_steps or 1000, model=None if start is None else start.model
    )
    task = plan.recipe["task"]["config"]
    while estimate_memory(plan.recipe, machine.device) > _MEMORY_SHARE * machine.memory and halve_pass(task):
        pass
    measured = None
    if wish.num_steps is None or machine.device == "cuda":
        measured = calibrate_fitting(plan.recipe, wish, seconds=min(20.0, max(2.0, seconds / 30)))
    if measured is not None and wish.num_steps is None:
        num_steps = count_updates(measured, found.data, machine, seconds)
        plan.recipe["regime"] = choose_intervals(num_steps, seconds)
        plan.recipe["criterion"]["config"]["ema"] = choose_ema(num_steps)
    lines = [*describe(found, plan.recipe, machine, measured), f"plan: {path}, a recipe; change a value by --config KEY=VALUE"]
    write_plan(path, title, lines, plan.recipe)

    return lines


def find_data(out: Path, wish: Wish, start: Start | None) -> Found:
    """Find the dataset of a folder; write one where there is none.

    :raises RecipeError: as for :func:`plan_pretraining`.
    """
    assert wish.data is not None
    folder = look_at(wish.data, wish.modality)
    if folder.is_dataset:
        return Found(read_data(folder.path, folder.modality), folder.path)
    print_on_first_rank([f"Reading {len(folder.files):,} files of {wish.data} …"])
    report = write_manifests(folder, out / "data", tokenizer=None if start is None else start.tokenizer)

    return Found(read_data(out / "data", folder.modality), wish.data, report, folder.notes)


def count_updates(measured: Calibration, data: Data, machine: Machine, seconds: float) -> int:
    """How many updates fit into the time, that of the probes taken off: one pass without gradients over few samples each."""
    per_sample = measured.seconds / max(1.0, measured.samples) / 6
    fitting = 0.01 * data.num_probed[0]
    probes = _NUM_VALIDATIONS * (1.0 + fitting + sum(data.num_probed) * per_sample) if data.probe_split else 0.0

    num_steps = int(max(0.4 * seconds, seconds - probes) / measured.seconds)
    # Intervals are shares: so the last of them ends with the run.
    return max(20, num_steps // 50 * 50 if num_steps >= 50 else num_steps // 5 * 5)
