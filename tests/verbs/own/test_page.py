"""The commands of recipes/own_data.md and of the README do what the pages say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
QUICK = ["regime.num_steps=1", "pictures.enabled=false", "common.torch.num_threads=1"]


def read_commands(name: str) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

    return [line for block in blocks for line in block.splitlines() if " data=" in line or name != "README.md"]


COMMANDS = [*read_commands("recipes/own_data.md"), *read_commands("README.md")]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of the pages write, one after the other."""
    return tmp_path_factory.mktemp("page")


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_the_commands_train(line: str, command: Any, runs: Path, photos: Path, sounds: Path, texts: Path) -> None:
    words = shlex.split(line)
    words = words[words.index("recipe") :]
    folders = {"PICTURES": photos, "RECORDINGS": sounds, "TEXTS": texts}
    placed = [re.sub("PICTURES|RECORDINGS|TEXTS", lambda found: str(folders[found[0]]), word) for word in words]
    placed = [re.sub(r"\bout/", f"{runs}/", word) for word in placed if not word.startswith("budget=")]
    if (Path(placed[2]) / "plan.yaml").exists():
        placed[2] += "_again"

    outcome = command(*placed, *([] if words[1] == "evaluate" else QUICK))

    assert outcome.status == 0, outcome.err
    assert ("accuracy" if words[1] == "evaluate" else "Finished after 1 updates.") in outcome.out


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 8
