from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from d2v_plugin.core.remote import place
from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.data.files import read_bytes
from tests.conftest import Command


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two archives of ten recordings, beside what is none that can be read."""
    folder, random = tmp_path / "tars", np.random.default_rng(0)
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"shard-{number}.tar", "w") as archive:
            for row in range(10):
                sound, kind = io.BytesIO(), ("flac", "wav")[row % 2]
                soundfile.write(sound, random.standard_normal(1000 + row), 16_000, format=kind.upper())
                long_name = "x" * 120 if row == 3 else ""  # which takes a header of its own
                for suffix, data in {
                    kind: sound.getvalue(),
                    "cls": b"%d\n" % (row % 3),
                    "txt": f"row {row} ".encode(),
                    "json": json.dumps({"text": f"say {row}", "speaker": 7}).encode(),
                }.items():
                    info = tarfile.TarInfo(f"./sub.d/{long_name}{number}{row}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo("notes.md")
            archive.addfile(info)
    whole = (folder / "shard-0.tar").read_bytes()
    (folder / "cut.tar").write_bytes(whole[: len(whole) // 3])
    (folder / "none.tar").write_bytes(b"no archive" * 100)
    (folder / "packed.tar.gz").write_bytes(b"")

    return folder


@pytest.mark.parametrize(
    ("labels", "first"),
    [("--labels=cls", "0"), ("--labels=folders", "sub.d"), ("--transcripts=txt", "row 0"), ("--transcripts=json:text", "say 0")],
)
def test_archives_are_indexed_where_they_lie(labels: str, first: str, command: Command, tars: Path, tmp_path: Path) -> None:
    outcome = command("recipe", "manifest", "audio", tars, tmp_path / "out", labels, "--valid-percent", 20)

    assert outcome.status == 0
    assert "none.tar: the archive cannot be read" in outcome.out and "cut.tar: the archive cannot be read" in outcome.out
    assert "packed.tar.gz: a compressed archive has no ranges to read" in outcome.out
    train = AudioManifest.open(ManifestConfig(path=tmp_path / "out")).split("train")
    assert len(train) == 16 and not list((tmp_path / "out").glob("*.zip"))
    labels_of = {train.location(row).path.rpartition("/")[2]: train.text("label", row) for row in range(len(train))[::-1]}
    assert set(labels_of) == {"shard-0.tar", "shard-1.tar"}
    for row in range(len(train)):
        assert soundfile.info(io.BytesIO(read_bytes(train.location(row)))).frames == train.integers("size")[row]
    assert first in {train.text("label", row) for row in range(len(train))}


def test_a_store_gives_the_rows_of_a_folder(
    command: Command, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    source, out = place("memory://archives/tars"), place("memory://archives/out")
    for path in tars.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    options = ["--labels", "cls", "--valid-percent", 20, "--check-duplicates"]

    for words in ([tars, tmp_path / "out"], [source, out], [source, out]):
        outcome = command("recipe", "manifest", "audio", *words, *options)
        assert outcome.status == 0
    assert "not read again, since the last run read them: 20 files" in outcome.out and f"is in {out}." in outcome.out
    for split in ("train", "valid"):
        here, there = (folder / f"{split}.tsv" for folder in (tmp_path / "out", out))
        assert here.read_text().split("\n")[1:] == there.read_text().split("\n")[1:]
        assert there.read_text().startswith("memory://archives/tars\n")
    assert "20 rows" not in command("recipe", "manifest", "inspect", out / "train.tsv").err

    one = command("recipe", "manifest", "audio", source / "shard-1.tar", tmp_path / "one", "--valid-percent", 20)
    packed = command("recipe", "manifest", "audio", source, out, "--shard-size", "1M", *options)
    assert one.status == 0 and "8 files" in one.out and packed.status == 0 and len(list(out.glob("*.zip"))) == 2
    for words, message in (
        (["memory://archives/no", tmp_path / "x"], "memory://archives/no: no such object"),
        ([source / "shard-1.tar", tmp_path / "x", "--labels", "json:age"], "its JSON has no text or number `age`"),
        ([tars, "https://127.0.0.1:9/x"], "a web server is only read from"),
    ):
        outcome = command("recipe", "manifest", "audio", *words)
        assert outcome.status == 2 and message in outcome.err
