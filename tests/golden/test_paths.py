"""Recorded data names no places on other people's machines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FOREIGN = re.compile(r"(?<![\w.])/(private|fsx|checkpoint|datasets01|scratch|home)\b[-\w/.]*")
FILES = sorted(path for folder in ("golden", "recipes") for path in (TESTS / folder).rglob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_path_of_a_cluster_is_recorded(path: Path) -> None:
    found = FOREIGN.search(path.read_text())

    assert found is None, found.group()
