"""The batch file for SLURM, with stand-ins for SLURM's own commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "recipes" / "slurm" / "train.sbatch"

COMMANDS = {
    "scontrol": 'if [[ $1 == show ]]; then echo node7; echo node8; else echo "$@" >> "$LOG/scontrol"; fi',
    "srun": 'shift; for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" || exit; done',
    "fairseq2": 'env > "$LOG/env_$RANK"; printf "%s\\n" "$@" > "$LOG/words"; eval "$BEHAVIOUR"',
}
JOB = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "1"}
RECIPE = "recipes/image/pretrain_base.yaml"


@pytest.fixture
def submit(tmp_path: Path) -> Any:
    """Runs the batch file; what ``fairseq2`` does is given in shell."""
    for name, body in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def run(*words: str, behaviour: str = ":") -> int:
        paths = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOG": str(tmp_path), "BEHAVIOUR": behaviour}
        return subprocess.run(["bash", FILE, *words], env={**os.environ, **JOB, **paths}, cwd=ROOT, timeout=60).returncode

    return run


def test_the_file_is_valid_and_asks_for_a_signal_before_the_end() -> None:
    subprocess.run(["bash", "-n", FILE], check=True, timeout=60)
    options = re.findall(r"^#SBATCH (.*)$", FILE.read_text(), re.MULTILINE)

    # Without `B:`, which would reach the batch file only.
    assert "--signal=USR1@300" in options and "--requeue" in options


def test_a_stopped_run_is_queued_again_and_a_finished_one_is_not(submit: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save = f"mkdir -p {out}/checkpoints/step_"

    assert submit(RECIPE, str(out), behaviour=f"{save}1") == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 12345\n"

    assert submit(RECIPE, str(out), behaviour=f"touch {out}/summary.json") == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 12345\n"
    # The same directory with more updates to do: what an earlier run left does not count.
    assert submit(RECIPE, str(out), behaviour=f"{save}2") == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 12345\n" * 2


def test_a_run_that_could_save_nothing_is_not_queued_again(submit: Any, tmp_path: Path) -> None:
    """On a full disk it would come back for ever."""
    (tmp_path / "out" / "checkpoints" / "step_1").mkdir(parents=True)

    assert submit(RECIPE, str(tmp_path / "out")) == 1
    assert not (tmp_path / "scontrol").exists()


def test_a_failed_run_is_not_queued_again(submit: Any, tmp_path: Path) -> None:
    assert submit(RECIPE, str(tmp_path / "out"), behaviour="exit 3") == 3
    assert not (tmp_path / "scontrol").exists()
    assert submit(RECIPE) == 2


def test_each_task_knows_its_rank_and_runs_a_command_that_is_understood(submit: Any, command: Any, tmp_path: Path) -> None:
    save = f"mkdir -p {tmp_path}/out/checkpoints/step_1"
    assert submit(RECIPE, str(tmp_path / "out"), "regime.num_steps=400000", "common.seed=3", behaviour=save) == 0

    for rank in "01":
        variables = (tmp_path / f"env_{rank}").read_text().splitlines()
        expected = {f"RANK={rank}", f"LOCAL_RANK={rank}", "WORLD_SIZE=2", "LOCAL_WORLD_SIZE=2", "MASTER_ADDR=node7"}
        assert expected < set(variables)
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:2] == ["recipe", "train"]
    dumped = command(*words, "--dump-config")
    assert dumped.status == 0 and "num_steps: 400000" in dumped.out and "seed: 3" in dumped.out
