from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fairseq2.device import CPU
from fairseq2.gang import FakeGang, Gangs, create_fake_gangs
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core import store
from d2v_plugin.core.remote import place
from d2v_plugin.data.dataset import AudioManifest, DatasetPart, ImageManifest, ManifestConfig, TextManifest
from d2v_plugin.data.files import Location, read_bytes
from d2v_plugin.data.order import SampleOrder, share_batch
from d2v_plugin.data.problems import ManifestError
from d2v_plugin.data.store_cache import RangeCache, open_cache
from d2v_plugin.data.store_reading import ReadAhead, _join, _Wanted, store_reader
from d2v_plugin.tasks.audio import AudioPretrainingConfig, AudioPretrainingTask
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask
from d2v_plugin.tasks.text import TextPretrainingConfig, TextPretrainingTask

MANIFESTS = Path(__file__).parents[2] / "manifests"
_AUDIO = AudioPretrainingConfig(min_sample_size=1, batches_per_update=2, max_num_elements=60_000)
TASKS: dict[str, tuple[Any, Any]] = {
    "digits": (ImagePretrainingTask(ImagePretrainingConfig(batch_size=8)), ImageManifest),
    "words": (AudioPretrainingTask(_AUDIO), AudioManifest),
    "books": (TextPretrainingTask(TextPretrainingConfig(batch_size=8, tokens_per_sample=32)), TextManifest),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("D2V_CACHE", str(tmp_path / "cache"))
    store_reader.cache_clear()
    yield
    store_reader.cache_clear()


def copy_to(folder: Path, source: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file() and path.suffix != ".py":
            (folder / path.relative_to(source).as_posix()).write_bytes(path.read_bytes())
    return folder


def gangs_of(rank: int, size: int) -> Gangs:
    gangs = create_fake_gangs(CPU)
    gang = FakeGang(CPU, rank=rank, size=size)
    return Gangs(root=gang, dp=gang, rdp=gang, sdp=gangs.sdp, tp=gangs.tp, pp=gangs.pp)


@pytest.mark.parametrize("name", TASKS)
def test_samples_and_their_order_are_those_of_local_files(name: str) -> None:
    """Also for one of two ranks, and from where a checkpoint stands."""
    task, family = TASKS[name]
    folder = copy_to(place(f"memory://reading/{name}"), MANIFESTS / name)
    local, remote = (task.open(family.open(ManifestConfig(path=path)), report=None) for path in (MANIFESTS / name, folder))
    assert local.dataset.split("train").to_fetch is None and local.dataset.split("train").hash_rows()

    for rank, size in ((0, 1), (1, 2)):
        here, there = (each.create_train_reader(gangs_of(rank, size), 5) for each in (local, remote))
        for _ in range(2):
            for one, other in zip(next(here), next(there), strict=True):
                assert torch.equal(one.inputs, other.inputs) and torch.equal(one.ids, other.ids)
        again = remote.create_train_reader(gangs_of(rank, size), 5)
        again.load_state_dict(there.state_dict())
        assert torch.equal(next(again)[0].inputs, next(here)[0].inputs)
    rows = [list(each.open_rows("valid").read(0, 6, 4)) for each in (local, remote)]
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(*rows, strict=True))


class Ranges(SimpleHTTPRequestHandler):
    """A web server that gives parts of files, as they all do but Python's own."""

    def do_GET(self) -> None:
        file, found = Path(self.translate_path(self.path)), re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found is None or not file.is_file():
            return super().do_GET()
        data = file.read_bytes()[int(found[1]) : int(found[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {found[1]}-{found[2]}/{file.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_a_web_server_is_read_from() -> None:
    task, family = TASKS["words"]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(MANIFESTS))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        folder = place(f"http://127.0.0.1:{server.server_port}/words")
        here, there = (task.open(family.open(ManifestConfig(path=path)), report=None) for path in (MANIFESTS / "words", folder))
        for one, other in zip(*(each.open_rows("valid").read(0, 6, 4) for each in (here, there)), strict=True):
            assert torch.equal(one.inputs, other.inputs)
        server.shutdown()


@pytest.mark.parametrize("name", TASKS)
def test_one_of_several_datasets_may_be_on_a_store(name: str) -> None:
    task, family = TASKS[name]
    folder = copy_to(place(f"memory://joined/{name}"), MANIFESTS / name)

    def open_parts(second: Path) -> Any:
        parts = [DatasetPart(path=path) for path in (MANIFESTS / name, second)]
        return task.open(family.open(ManifestConfig(parts=parts)), report=None)

    local, mixed = open_parts(MANIFESTS / name), open_parts(folder)
    assert local.dataset.split("train").to_fetch is None and mixed.dataset.split("train").to_fetch is not None

    here, there = (next(each.create_train_reader(gangs_of(0, 1), 5)) for each in (local, mixed))
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(here, there, strict=True))
    rows = [list(each.open_rows("valid").read(0, 6, 4)) for each in (local, mixed)]
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(*rows, strict=True))


class Counted(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Remembers what it is asked for; knows two archives."""

    asked: list[tuple[str, int, int]] = []  # noqa: RUF012
    contents = {"counted://x/a.tar": bytes(range(200)), "counted://x/b.tar": bytes(100)}  # noqa: RUF012

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if path not in self.contents:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.contents[path]), "type": "file", "ETag": str(len(self.contents[path]))}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        self.asked.append((path, start or 0, end or 0))
        return self.contents[path][start:end]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    fsspec.register_implementation("counted", Counted, clobber=True)
    monkeypatch.setattr(Counted, "asked", [])
    monkeypatch.setattr(Counted, "contents", dict(Counted.contents))
    store.open_store.cache_clear()
    return Counted


def test_what_comes_next_is_asked_for_once_and_ahead_and_neighbors_together(counted: type[Counted]) -> None:
    order, share = SampleOrder(20, seed=1), share_batch(4, None, rank=0, world_size=1)
    places = [Location("counted://x/a.tar", 10 * row, 10) for row in range(20)]
    ahead = ReadAhead(lambda number: order.read(*share.find_items(number)).rows if number < 10 else None, places.__getitem__)

    ahead(0)
    # Two epochs: what the second one needs is already there.
    for epoch in range(2):
        rows = order.read(20 * epoch, 20 * epoch + 20).rows
        assert [read_bytes(places[row])[0] for row in rows] == [10 * row for row in rows]
    first, rest = (sorted(10 * row for row in order.read(*part).rows) for part in ((0, 4), (4, 20)))
    assert [(start, stop) for _, start, stop in counted.asked] == [(low[0], low[-1] + 10) for low in (first, rest)]

    # Later the cache answers, unless the object has changed.
    read_bytes(places[3])
    assert len(counted.asked) == 2
    counted.contents["counted://x/a.tar"] = bytes(199)
    store_reader.cache_clear()
    assert read_bytes(places[3]) == bytes(10) and len(counted.asked) == 3
    # One that is wrong does not spoil its neighbors.
    store_reader().request([places[19], places[5]])
    assert read_bytes(places[5]) == bytes(10)
    with pytest.raises(OSError, match=r"a\.tar:190:10 has 10 bytes, but the object has 199"):
        read_bytes(places[19])


def test_ranges_are_joined_as_far_as_that_saves_time() -> None:
    def join(*ranges: tuple[str, int, int | None]) -> list[list[int]]:
        return [[each.location.offset for each in group] for group in _join([_Wanted(Location(*each)) for each in ranges])]

    assert join() == [] and join(("a", 0, None), ("b", 0, None)) == [[0], [0]]
    assert join(("a", 9000, 10), ("b", 0, 10), ("a", 0, 10)) == [[0, 9000], [0]]
    assert join(("a", 20_000, 10), ("a", 0, 10), ("a", 5, 10)) == [[20_000], [0, 5]]
    assert join(("a", 3 << 20, 2 << 20), ("a", 0, 3 << 20)) == [[3 << 20], [0]]


def test_a_manifest_of_objects_is_checked_when_it_opens(counted: type[Counted], tmp_path: Path) -> None:
    def problems(root: str, *rows: str) -> str:
        (tmp_path / "train.tsv").write_text("\n".join([root, *rows]) + "\n")
        with pytest.raises(ManifestError) as caught:
            ImageManifest.open(ManifestConfig(path=tmp_path))
        return str(caught.value)

    assert "`counted://x/c.tar` does not exist" in problems("counted://x", "a.tar:0:10", "c.tar:0:10")
    text = problems("memory://root", "../a.png", "memory://other/a.png", "b.png")
    assert text.count("lies outside of the root (memory://root)") == 2 and "`memory://root/b.png` does not exist" in text
    assert "some roots are on a store and some are local" in problems("memory://root\t/tmp", "memory://root/x")


def test_the_cache_keeps_to_its_bound_and_does_without_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RangeCache(tmp_path / "kept", 16_000)
    for number in range(60):
        cache.put(str(number), bytes([number]) * 500)
        path = cache._path(str(number))
        os.utime(path, ns=(number, number))
    assert sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file()) <= 16_000
    assert cache.get("59", 500) == bytes([59]) * 500 and cache.get("59", 501) is None and cache.get("0", 500) is None

    (tmp_path / "file").touch()
    broken = RangeCache(tmp_path / "file", 16_000)
    broken.put("a", b"x")
    assert broken.get("a", 1) is None and broken.limit == 0
    monkeypatch.setenv("D2V_CACHE_GB", "much")
    with pytest.raises(RecipeError, match="`D2V_CACHE_GB` is `much`"):
        open_cache()
