from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from d2v_plugin.core import store
from d2v_plugin.core.remote import RemotePath, localized, place, written


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("s3:/bucket/a", "s3://bucket/a"),  # as fairseq2 passes it on
        ("https://host:80/a", "https://host:80/a"),
        ("/a/b", None),
        ("a:/b", None),
        ("foo:/b", None),
        ("s3:", None),
        ("file:/a", None),
    ],
)
def test_addresses_are_told_from_local_paths(text: str, shown: str | None) -> None:
    for path in (place(text), place(Path(text))):
        if shown is None:
            assert type(path) is type(Path()) and path == Path(text)
        else:
            assert isinstance(path, RemotePath) and str(path) == shown and str(path / "x") == f"{shown}/x"
            assert type(pickle.loads(pickle.dumps(path))) is RemotePath


def test_a_path_on_a_store_is_used_as_a_local_one(tmp_path: Path) -> None:
    root = place("memory://remote/run")
    assert isinstance(root, RemotePath) and not root.exists() and list(root.glob("*")) == []
    (root / "a.txt").write_text("one\ntwo\n")
    with written(root / "b" / "c.bin") as file:
        file.write_bytes(b"0123456789")

    assert root.is_dir() and (root / "a.txt").is_file() and [path.name for path in root.iterdir()] == ["a.txt", "b"]
    assert root.find_files() == {"a.txt": 8, "b/c.bin": 10} and [path.name for path in root.glob("*.txt")] == ["a.txt"]
    with (root / "b" / "c.bin").open("rb") as content:
        content.seek(-4, os.SEEK_END)
        assert content.read(2) == b"67" and content.tell() == 8
    with (root / "a.txt").open() as lines:
        assert list(lines) == ["one\n", "two\n"]
    before = (root / "a.txt").stat()
    (root / "a.txt").write_text("other")
    assert (root / "a.txt").stat().st_mtime_ns != before.st_mtime_ns and before.st_size == 8
    with localized(root) as folder, localized(tmp_path) as same:
        assert (folder / "b" / "c.bin").read_bytes() == b"0123456789" and same is tmp_path
    moved = (root / "b").rename(root / "d")
    assert moved.find_files() == {"c.bin": 10} and (root / "b").find_files() == {}
    moved.remove_tree()
    assert root.find_files() == {"a.txt": 5}


def test_what_cannot_be_done_is_an_error_of_the_place() -> None:
    root = place("memory://remote/errors")
    (root / "a").write_bytes(b"0123")
    cases = [
        (lambda: (root / "no").read_bytes(), errno.ENOENT, "no such object or bucket"),
        (lambda: (root / "a").read_range(2, 6), errno.ENODATA, "it ends after 4 bytes, but 6 are needed"),
        (lambda: os.stat(root / "a"), errno.EREMOTE, "only a local file or folder can be used here"),
        (lambda: place("https://127.0.0.1:9/x").write_text(""), errno.EROFS, "a web server is only read from"),
        (lambda: place("s3://key:secret@bucket/x").__fspath__(), errno.EREMOTE, "only a local file"),
    ]
    for action, number, message in cases:
        with pytest.raises(OSError, match=message) as caught:
            action()
        assert caught.value.errno == number and "secret" not in str(caught.value)


def test_only_what_may_pass_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("d2v_plugin.core.store.time.sleep", pauses.append)
    answers: list[Exception | int] = [TimeoutError(), OSError("reset"), ConnectionError("cut"), 7]

    def answer(*_: object) -> int:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    assert store.ask("memory://x", answer) == 7
    assert len(pauses) == 3 and all(low <= pause <= 1.5 * low for pause, low in zip(pauses, (0.1, 0.2, 0.4), strict=True))
    answers[:] = [PermissionError("Access Denied for sig=abcdefgh now"), 7]
    with pytest.raises(PermissionError, match=r"the store refuses access \(Access Denied for sig=\*\*\* now\)"):
        store.ask("memory://x", answer)
    assert answers == [7] and len(pauses) == 3
