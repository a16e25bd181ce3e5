from __future__ import annotations

from pathlib import Path

import pytest

from tools.benchmark import data, store
from tools.benchmark.__main__ import main


def test_the_table_compares_loose_files_and_shards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    main(["data", "--inputs", "text", "--seconds", "0.1", "--repeats", "1"])
    _, _, *rows = capsys.readouterr().out.splitlines()

    assert [row.split(" | ")[:2] for row in rows] == [["| text", "files"], ["| text", "shards"]]
    for row in rows:
        assert all(float(number.strip(" |").replace(",", "")) > 0 for number in row.split(" | ")[2:])


def test_a_slow_store_is_compared_with_the_local_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(data, "NUM_IMAGES", 8)
    monkeypatch.setitem(data.BATCH_SIZE, "image", 2)
    monkeypatch.setenv("D2V_CACHE_GB", "0")
    main(["data", "--store", "--inputs", "image", "--seconds", "0.1", "--repeats", "1"])
    _, _, row = capsys.readouterr().out.splitlines()
    # The best of each side: local, then from the store, twice.
    rates = iter([(1.0, 40.0), (2.0, 10.0), (4.0, 30.0), (1.0, 20.0)])
    monkeypatch.setattr(store, "measure", lambda batches, seconds: next(rates))
    main(["data", "--store", "--inputs", "image", "--repeats", "2"])
    _, _, known = capsys.readouterr().out.splitlines()
    assert known.startswith("| image | 40 | ") and known.endswith(" | 20 | 0.50 | 0.50 | 0.50 |")

    assert row.startswith("| image | ") and all(float(number.replace(",", "")) > 0 for number in row.strip("| ").split(" | ")[1:])
