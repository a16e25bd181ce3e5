from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_shipped_digits_are_what_the_script_writes(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    subprocess.run([sys.executable, str(ROOT / "tools" / "make_digits.py"), str(tmp_path)], check=True, cwd=ROOT)

    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROOT / "manifests" / "digits" / path.name).read_bytes(), path.name
