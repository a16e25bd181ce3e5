"""The comparison with other programs: every row runs on both sides at tiny size, and pairs become ratios."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tools.benchmark import __main__ as benchmark
from tools.benchmark import peers
from tools.benchmark.peer_rows import ROWS, begin
from tools.benchmark.peer_side import Setting, serve


class InProcess:
    """A side without a process of its own."""

    def __init__(self, setting: Setting, python: str, module: str) -> None:
        self.setting = setting
        first, self.last = self._serve("run", "end")
        self.compares = first["compares"]

    def _serve(self, *lines: str) -> tuple[Any, Any]:
        answers: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
            serve(begin, self.setting, answers.append)
        return answers[0], answers[-1]

    def ask(self, line: str) -> Any:
        if line == "run":
            return {"cpu": 4.0 if self.setting.side == "theirs" else 2.0, "wall": 1.0}
        return self.last if line == "end" else self._serve(line)


# Rows of equal lengths do what those of mixed ones do.
@pytest.mark.parametrize("row", [row for row in ROWS if f"{row}-mixed" not in ROWS])
def test_both_sides_do_the_same_work(
    row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "Process", InProcess)
    benchmark.main(["peers", "--tiny", "--seconds", "0", "--rows", row, "--json", str(tmp_path / "rows.json")])

    (found,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert found["ratio"] == found["lowest"] == 0.5 and found["wall_ratio"] == 1.0 and found["pairs"] == 3
    assert (found["difference"] is not None) == (row.startswith("features/") or row == "decoding/beam")
    assert found["difference"] is None or found["difference"] <= 1e-5
    assert f"| {ROWS[row][0]} | fp32 | 0.50 (0.50 to 0.50, 3) |" in capsys.readouterr().out


def test_the_original_needs_a_checkout() -> None:
    with pytest.raises(SystemExit, match="original/image: name a checkout of fairseq by `--original`"):
        benchmark.main(["peers", "--rows", "original/image"])
