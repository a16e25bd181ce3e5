"""The Python of recipes/using.md works as it stands there; its commands are run by tests/test_readme.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torchvision.io import write_jpeg

ROOT = Path(__file__).parents[2]
TEXT = ROOT.joinpath("recipes", "using.md").read_text(encoding="utf-8")
HEADS = {"transcriber": "transcripts", "digits_tuned": "classes", "book_pairs": "pairs"}


@pytest.fixture
def run_code(short_run: Any, with_head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Runs the code of a name, in a folder with the files that the page reads; returns its variables."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(1)
    Path("more_sounds").mkdir()
    for name in ("sound.wav", "more_sounds/a.wav"):
        soundfile.write(name, 0.1 * generator.normal(size=16000), 16000)
    write_jpeg(torch.randint(256, (3, 40, 60), dtype=torch.uint8), "picture.jpg")
    Path("letter.txt").write_text("Dear friend,\n\nthis is a letter.\n")
    Path("pairs.jsonl").write_text('{"first": "a word", "second": "what it means"}\n')

    def run(name: str) -> dict[str, Any]:
        found = re.search(rf"<!-- code: {name} -->\n```python\n(.*?)```", TEXT, re.DOTALL)
        assert found is not None
        code = re.sub(
            r"out/(\w+)", lambda out: str((with_head if out[1] in HEADS else short_run)(HEADS.get(out[1], out[1]))), found[1]
        )
        names: dict[str, Any] = {}
        exec(code.replace('"manifests/', f'"{ROOT}/manifests/'), names)
        return names

    return run


def test_models_are_used(run_code: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_code("use")

    # Two lines for each recording, the second with its words.
    printed = capsys.readouterr().out.splitlines()[-4:]
    assert ["sound.wav" in printed[0], "a.wav" in printed[2]] == [True, True] and printed[1][:2] == printed[3][:2] == "[("
    assert names["result"].path.endswith("picture.jpg") and len(names["result"].classes) == 3
    assert names["vectors"].shape == (2, 192)


@torch.no_grad()
def test_single_files_become_features(run_code: Any) -> None:
    names = run_code("single files")

    assert names["features"].x.shape == (1, 49, 96) and len(names["features"].layers) == 4
    assert names["patches"].x.shape == (1, 64, 96)
    assert names["tokens"].x.shape[0] == 1 and names["tokens"].x.shape[1] > 5
