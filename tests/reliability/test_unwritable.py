"""Files that cannot be written, each kind alone: a warning beside a run, a line with status 2 where a command is for them."""

from __future__ import annotations

import errno
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fairseq2.runtime.dependency import DependencyContainer
from PIL import Image
from safetensors import SafetensorError

from d2v_plugin.cli.user_errors import explain

ROOT = Path(__file__).parents[2]
ROOM = "Make room and repeat the command"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names for which there is no room, wherever they are written."""
    names: list[str] = []
    rename, open_file = Path.replace, os.open

    def replace(path: Path, target: Any) -> Path:
        if Path(target).name in names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return rename(path, target)

    def open_(path: Any, flags: int, *others: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and Path(os.fsdecode(path)).name in names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return open_file(path, flags, *others, **options)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(os, "open", open_)
    yield names


@pytest.fixture
def tuned(tmp_path: Path, tiny_recipe: Path, command: Any) -> Path:
    """A tiny classifier's run."""
    recipe = ROOT / "recipes" / "demo" / "finetune_digits.yaml"
    settings = ["regime.num_steps=1", "regime.publish_metrics_every_n_steps=1", "regime.validate_every_n_steps=1"]
    model = ["model.config_overrides={dim: 32, depth: 2, num_heads: 2}", "init.path=null", "pictures.enabled=false"]
    outcome = command("recipe", "train", "--no-rich", "--config-file", recipe, tmp_path / "tuned", "--config", *settings, *model)
    assert outcome.status == 0, outcome.err

    return tmp_path / "tuned"


def test_what_is_written_beside_a_run_costs_a_warning(command: Any, tiny_recipe: Path, tmp_path: Path, full: list[str]) -> None:
    """One run for each kind; tests/reliability/test_resuming.py has them together, and the other kinds."""
    settings = ["regime.num_steps=1", "regime.publish_metrics_every_n_steps=1", "pictures.enabled=true"]
    for number, name in enumerate(("train.jsonl", "summary.json", "layers.jsonl")):
        full[:] = [name]
        out = tmp_path / str(number)
        outcome = command("recipe", "train", "--no-rich", "--config-file", tiny_recipe, out, "--config", *settings)
        assert outcome.status == 0 and "Traceback" not in outcome.err, outcome.err
        assert f"{name}cannotbewritten" in "".join(outcome.err.split()), outcome.err
        assert (out / "checkpoints" / "step_1").is_dir()


def test_what_a_command_is_for_ends_it_with_a_line(command: Any, tuned: Path, tmp_path: Path, full: list[str]) -> None:
    for number in range(8):
        (tmp_path / "pictures" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png")
    predict = ["predict", "OUT", "--config", f"checkpoint.path={tuned}", f"inputs={tmp_path / 'pictures'}"]
    manifest = ["manifest", "image", tmp_path / "pictures", "OUT", "--valid-percent", "50"]
    features = ["extract", "OUT", "--config", f"checkpoint.path={tuned}", "features.shard_size=10000"]
    cases = {
        "part-00000.jsonl": predict,
        "predictions.jsonl": predict,
        "predictions.tsv": predict,
        "scores.json": ["evaluate", "OUT", "--config", f"checkpoint.path={tuned}"],
        "shard-00000.safetensors": features,
        "train.tsv": manifest,
        "report.json": manifest,
        "splits.json": manifest,
        "plan.yaml": ["pretrain", "OUT", "--config", f"data={tmp_path / 'pictures'}", "budget=1m"],
        "out_9": ["export", "OUT", "--config", f"checkpoint.path={tuned}", "format=huggingface"],
    }
    for number, (name, words) in enumerate(cases.items()):
        full[:] = [name]
        out = tmp_path / f"out_{number}"
        outcome = command("recipe", *(out if word == "OUT" else word for word in words))
        assert "Traceback" not in outcome.err and "unexpected" not in outcome.err, f"{name}\n{outcome.err}"
        assert outcome.status == 2 and name in outcome.err.strip().splitlines()[-1], f"{name}\n{outcome.err}"


@pytest.mark.parametrize(
    "ex",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large", "x"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_every_writer_of_ours_says_that_there_is_no_room(ex: Exception) -> None:
    """Also where another error follows from it."""
    later = RuntimeError("unexpected pos 16064 vs 15952")
    later.__context__ = ex
    for each in (ex, later):
        assert ROOM in (explain(each, DependencyContainer(), Namespace(config_file=None, config_overrides=None)) or "")
    assert explain(SafetensorError("invalid header"), DependencyContainer(), Namespace()) is None
