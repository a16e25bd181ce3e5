"""The README's example of a criterion of one's own works as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"


def read_example() -> str:
    """The Python block after the marker."""
    found = re.search(r"<!-- code: own criterion -->\s*```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, "README.md has lost the marker `<!-- code: own criterion -->` or the block behind it."

    return found[1]


def test_the_example_is_short() -> None:
    assert len([line for line in read_example().splitlines() if line.strip()]) < 40


def test_the_example_trains_as_the_readme_says(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    extension = tmp_path / "colours.py"
    extension.write_text(read_example(), encoding="utf-8")
    settings = ["criterion={name: colours}", "regime.num_steps=30", "regime.publish_metrics_every_n_steps=10"]

    words = ("recipe", "train", "--extension", extension, "--config-file", tiny_recipe, tmp_path / "out")
    outcome = command(*words, "--config", *settings)

    assert outcome.status == 0, outcome.err
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics" / "train.jsonl").read_text().splitlines()]
    assert lines[-1]["Loss"] < 0.8 * lines[0]["Loss"]
    assert "--extension colours.py" in README.read_text(encoding="utf-8") and "'criterion={name: colours}'" in README.read_text()


def test_the_example_is_listed_by_name(command: Any, tmp_path: Path) -> None:
    extension = tmp_path / "colours.py"
    extension.write_text(read_example(), encoding="utf-8")

    out = command("recipe", "list", "--extension", extension).out

    assert "colours" in out.split("criteria:")[1].split("\n\n")[0].split()
