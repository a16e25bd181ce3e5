"""The screen shows warnings and what is ours; the log file has everything, from the first record on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from d2v_plugin.cli.screen import is_shown
from d2v_plugin.core.log import LOG_NAME


def record(name: str, level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, (), None)


def test_warnings_and_our_own_log_reach_the_screen() -> None:
    assert is_shown(record("torch", logging.WARNING, "careful")) and is_shown(record(LOG_NAME, logging.INFO, "Loaded."))
    assert is_shown(record("fairseq2", logging.INFO, "Training restored. Resuming from step 4."))
    assert not is_shown(record("fairseq2", logging.INFO, "Gangs warmed up."))
    assert not is_shown(record("fairseq2", logging.WARNING, "Based on the environment setup, training will be run on CPU."))


def test_a_run_shows_ten_lines_and_logs_all(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = command("recipe", "train", "--config-file", tiny_recipe, out, "--config", "common.torch.num_threads=null")

    assert outcome.status == 0
    start, _, end = outcome.out.partition("\n\nFinished after 4 updates.")
    lines = start.strip().splitlines()
    names = ("train", "data", "model", "start", "batch", "optimizer", "device", "intervals", "results", "log")
    assert [line.split(":")[0] for line in lines] == list(names)
    assert lines[0] == "train:     data2vec2 (image_pretraining), 4 updates"
    assert lines[1].endswith("manifests/digits (train 1,200)")
    assert lines[2].startswith("model:     data2vec image_tiny, 2 blocks of width 32, ") and lines[3].endswith("random weights")
    assert lines[4].endswith("8 samples an update, 2 masked views of each sample") and "learning rate 0.001, cosine" in lines[5]
    assert "float32" in lines[6] and lines[7].endswith("metrics every 2 updates, and at the end")
    assert lines[8].endswith(str(out)) and len(outcome.err.splitlines()) <= 4, outcome.err
    assert "Update 1 of 4: loss " in outcome.err and "Task finished in" in outcome.err

    log = (out / "logs" / "rank_0.log").read_text()
    for logged in ("Activated FileSystem protocols", "Environment Variables", "Parameter Size", lines[2], "weight decay"):
        assert logged in log, logged
    assert "Update 4, train: loss " in log and "<1" not in log

    # What comes next are commands that work.
    assert f"fairseq2 recipe extract {out}_features --config checkpoint.path={out}" in end and "evaluate" not in end
    assert str(out / "pictures") not in end
    for line in end.splitlines():
        if line.startswith(("checkpoints: ", "metrics: ", "tensorboard: ", "log: ", "summary: ")):
            assert Path(line.split(": ")[1].strip()).exists(), line


def test_verbose_shows_everything(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    words = ("recipe", "train", "--verbose", "--config-file", tiny_recipe, tmp_path / "out")
    outcome = command(*words, "--config", "regime.num_steps=1")

    assert outcome.status == 0 and "Parameter Size" in outcome.err and "Gangs warmed up." in outcome.err


def test_other_libraries_are_in_the_log_file_too(command: Any, tiny_recipe: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from d2v_plugin.training.unit import CriterionUnit

    inner = CriterionUnit.set_step_nr

    def speak(unit: CriterionUnit, step_nr: int) -> None:
        logging.getLogger("some.library").info("I am at %d.", step_nr)
        inner(unit, step_nr)

    monkeypatch.setattr(CriterionUnit, "set_step_nr", speak)
    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", "regime.num_steps=1")

    assert outcome.status == 0 and "I am at" not in outcome.err
    assert "I am at 1." in (tmp_path / "out" / "logs" / "rank_0.log").read_text()
