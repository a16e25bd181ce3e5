"""The scripts beside the shipped datasets."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_shipped_digits_are_what_the_script_writes(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    subprocess.run([sys.executable, "-m", "manifests.digits.make", str(tmp_path)], check=True, cwd=ROOT)

    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROOT / "manifests" / "digits" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "manifests").glob("*/make.py")))
def test_every_script_loads_and_is_named_beside_its_data(name: str) -> None:
    pytest.importorskip("sklearn")
    script = importlib.import_module(f"manifests.{name}.make")

    assert callable(script.make) and f"python -m manifests.{name}.make" in script.__doc__
    assert f"`python -m manifests.{name}.make`" in (ROOT / "manifests" / name / "README.md").read_text()
