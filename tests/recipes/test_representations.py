"""What recipes/representations.md shows works; it runs on the demos after one update."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TEXT = ROOT.joinpath("recipes", "representations.md").read_text(encoding="utf-8")


@pytest.fixture
def place(short_run: Any, tmp_path: Path) -> Callable[[str], str]:
    """Replaces the page's paths by those of this test."""

    def replace(text: str) -> str:
        text = re.sub(r"out/(digits|words|books)\b(?!_)", lambda found: str(short_run(found[1])), text)
        text = text.replace('"manifests/', f'"{ROOT}/manifests/')

        return re.sub(r"(?<![\w/.])out/", f"{tmp_path}/", text)

    return replace


def find_code(name: str) -> str:
    found = re.search(rf"<!-- code: {name} -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None

    return found[1]


def find_command(start: str) -> str:
    (line,) = (line for line in TEXT.splitlines() if line.startswith(start))

    return line


def test_a_manifest_becomes_shards(command: Any, place: Any, tmp_path: Path) -> None:
    outcome = command(*shlex.split(place(find_command("fairseq2 recipe extract")))[1:])
    assert outcome.status == 0, outcome.err

    names: dict[str, Any] = {}
    exec(place(find_code("features")), names)

    assert names["shard"]["ids"].tolist() == list(range(120))
    assert names["shard"]["layer_3"].shape == (120, 192)


def test_probes_measure_every_layer(command: Any, place: Any) -> None:
    line = find_command("fairseq2 recipe evaluate").replace("{name: attentive}", "{name: attentive, config: {num_epochs: 1}}")
    outcome = command(*shlex.split(place(line))[1:])

    assert outcome.status == 0, outcome.err
    assert "probe, best layer" in outcome.out and "random_init, layer 3" in outcome.out


def test_s3prl_finds_the_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = ModuleType("s3prl.hub")
    package = ModuleType("s3prl")
    package.hub = hub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "s3prl", package)
    monkeypatch.setitem(sys.modules, "s3prl.hub", hub)

    exec(find_code("s3prl"), {})

    assert hub.d2v_plugin.__module__ == "d2v_plugin.s3prl"


def test_the_encoder_is_exported(place: Any, short_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = find_command("python tools/convert_checkpoint.py export").replace("out/words_encoder", str(tmp_path / "encoder"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", shlex.split(place(line))[1:])

    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(sys.argv[0], run_name="__main__")

    assert not exit_.value.code
    assert (tmp_path / "encoder" / "model.safetensors").is_file()
