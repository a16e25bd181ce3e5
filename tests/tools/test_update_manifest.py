"""tools/make_manifest.py run again: what a full run would write, without reading again what has not changed."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from d2v_plugin.data.preparation import audio, image

MAIN = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "make_manifest.py"))["main"]
STATE = "known.txt"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content was looked at."""
    names: list[str] = []
    decode, get_info = image.decode_picture, audio.read_info

    def decode_image(location: object) -> object:
        names.append(Path(str(location)).name)
        return decode(location)  # type: ignore[arg-type]

    def open_sound(location: object) -> object:
        names.append(Path(str(location)).name)
        return get_info(location)  # type: ignore[arg-type]

    monkeypatch.setattr(image, "decode_picture", decode_image)
    monkeypatch.setattr(audio, "read_info", open_sound)

    return names


def write_image(path: Path, value: int) -> None:
    Image.new("RGB", (20, 30), (value, 7, 255)).save(path)


def write_sound(path: Path, value: int) -> None:
    soundfile.write(path, np.random.default_rng(value).uniform(-0.5, 0.5, 8000), 16_000)


KINDS = {"image": ("png", write_image), "audio": ("flac", write_sound)}


def make_source(folder: Path, kind: str) -> tuple[Path, str, Callable[[Path, int], None]]:
    """Ten files, one of them broken."""
    suffix, write = KINDS[kind]
    source = folder / "source"
    source.mkdir()
    for row in range(10):
        write(source / f"{row}.{suffix}", row)
    (source / f"4.{suffix}").write_bytes(b"neither a picture nor a sound")

    return source, suffix, write


def run(kind: str, source: Path, out: Path, *options: object) -> dict[str, bytes]:
    """What was written, but for what the next run needs to know; a full run cuts the splits where the first run did."""
    cuts = source.parent / "out" / "splits.json"
    if not out.exists() and cuts.exists():
        out.mkdir()
        shutil.copy(cuts, out)
    words = [kind, source, out, "--valid-percent", 30, "--seed", 3, *options]
    assert MAIN([str(word) for word in words]) == 0

    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != STATE}


@pytest.mark.parametrize("options", [[], ["--shard-size", "1K"]])
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_writes_what_a_full_run_writes_and_reads_only_what_is_new(
    kind: str, options: list[str], tmp_path: Path, read: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, suffix, write = make_source(tmp_path, kind)
    run(kind, source, tmp_path / "out", *options)
    assert len(read) == 10

    (source / f"1.{suffix}").unlink()
    write(source / f"2.{suffix}", 50)
    write(source / f"55.{suffix}", 55)
    read.clear()
    capsys.readouterr()
    updated = run(kind, source, tmp_path / "out", *options)

    # What was broken is tried again: it may have been the disk.
    assert sorted(read) == [f"2.{suffix}", f"4.{suffix}", f"55.{suffix}"]
    assert "7 files" in capsys.readouterr().out
    assert f"4.{suffix}" in updated["report.json"].decode()
    assert updated == run(kind, source, tmp_path / "full", *options)


@pytest.mark.parametrize("kind", KINDS)
def test_only_shards_with_changed_files_are_rewritten(kind: str, tmp_path: Path) -> None:
    source, suffix, write = make_source(tmp_path, kind)
    options = ["--shard-size", "20K" if kind == "audio" else "150"]
    run(kind, source, tmp_path / "out", *options)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.zip")}
    assert len(times) > 3

    write(source / f"9.{suffix}", 90)
    after = run(kind, source, tmp_path / "out", *options)
    shards = {name for name in after if name.endswith(".zip")}

    # What changed has a new name, and the old one is gone; the others were not touched.
    assert len(shards - times.keys()) == len(times.keys() - shards) == 1
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == times[name] for name in shards & times.keys())
    assert after == run(kind, source, tmp_path / "full", *options)


def test_shards_grow_and_become_fewer(tmp_path: Path) -> None:
    source, _, write = make_source(tmp_path, "image")
    run("image", source, tmp_path / "out", "--shard-size", "150")
    for step in range(2):
        # In the second step the last shards have room left.
        write(source / f"9{step}.png", 90)
        updated = run("image", source, tmp_path / "out", "--shard-size", "1G")
        assert updated == run("image", source, tmp_path / f"full {step}", "--shard-size", "1G")


def test_shards_name_files_as_the_folder_given_does(tmp_path: Path) -> None:
    (tmp_path / "parent").mkdir()
    source, _, _ = make_source(tmp_path / "parent", "image")
    options = ["--shard-size", "1G", "--valid-percent", 0]
    run("image", source, tmp_path / "out", *options)
    updated = run("image", source.parent, tmp_path / "out", *options)

    assert updated == run("image", source.parent, tmp_path / "full", *options)


def test_a_shard_that_was_lost_or_touched_is_written_again(tmp_path: Path) -> None:
    source, _, _ = make_source(tmp_path, "image")
    options = ["--shard-size", "150"]
    first = run("image", source, tmp_path / "out", *options)
    lost, touched, *_ = sorted((tmp_path / "out").glob("train-*.zip"))
    lost.unlink()
    touched.write_bytes(b"x" * len(first[touched.name]))

    assert run("image", source, tmp_path / "out", *options) == first


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "not text", "without checksum"])
def test_a_damaged_state_is_not_believed(damage: str, tmp_path: Path, read: list[str]) -> None:
    source, _, _ = make_source(tmp_path, "audio")
    first = run("audio", source, tmp_path / "out")
    path = tmp_path / "out" / STATE
    content = path.read_bytes()
    altered = {
        "truncated": content[: len(content) // 2],
        "altered": content.replace(b'"size": 8000', b'"size": 8001', 1),
        "not text": b"\xff\xfe" + content,
        "without checksum": content.partition(b"\n")[2],
    }
    if damage == "missing":
        path.unlink()
    else:
        assert altered[damage] != content
        path.write_bytes(altered[damage])
    read.clear()

    assert run("audio", source, tmp_path / "out") == first
    assert len(read) == 10


@pytest.mark.parametrize("option", [["--reread"], ["--segment-seconds", "0.2"], ["--sample-rate", "8000"], ["--fairseq"]])
def test_all_is_read_when_asked_for_or_when_other_facts_are_wanted(option: list[str], tmp_path: Path, read: list[str]) -> None:
    source, _, _ = make_source(tmp_path, "audio")
    run("audio", source, tmp_path / "out")
    read.clear()
    updated = run("audio", source, tmp_path / "out", *option)

    assert len(read) == 10
    assert updated == run("audio", source, tmp_path / "full", *option)


def test_nothing_is_read_again_for_other_labels_or_another_split(tmp_path: Path, read: list[str]) -> None:
    source, _, _ = make_source(tmp_path, "image")
    run("image", source, tmp_path / "out")
    (tmp_path / "labels").write_text("".join(f"{row}.png\t{'even' if row % 2 else 'odd'}\n" for row in range(10)))
    read.clear()
    options = ["--seed", 1, "--labels", tmp_path / "labels"]
    updated = run("image", source, tmp_path / "out", *options)

    assert read == ["4.png"]
    assert updated == run("image", source, tmp_path / "full", *options)


def test_the_state_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    source, _, _ = make_source(tmp_path, "audio")
    run("audio", source, tmp_path / "out", "--shard-size", "40K")

    assert str(tmp_path) not in (tmp_path / "out" / STATE).read_text()
