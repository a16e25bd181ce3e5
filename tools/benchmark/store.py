"""Samples read from tar archives on a store that answers after 50 ms, and sends 100 MB/s at most, and from the local disk.

The store is made of local files. It sleeps, so that waiting for it takes none of the processors that decode. Nothing is kept in
a cache, and each archive has several names, so that they are far more than what is fetched ahead. Printed are samples a second on
the wall, their ratio, their ratio where the store itself would be slower than the disk, and that of samples a second of processor
time.
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import os
import tarfile
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import fsspec  # type: ignore[import-untyped]
from fsspec.asyn import AsyncFileSystem  # type: ignore[import-untyped]

from d2v_plugin.data.preparation.audio import prepare_audio
from d2v_plugin.data.preparation.image import prepare_images
from tools.benchmark.data import make_images, make_recordings, measure, read_ours

SCHEME: Final = "slow"
NUM_NAMES: Final = 16
"""Of each archive."""

LATENCY, RATE = 0.05, 100e6
"""Seconds before the first byte of each answer; bytes per second over all of them."""


@lru_cache(maxsize=256)
def _open(path: str) -> mmap.mmap:
    """In memory, so that the store itself costs little; hard links of a file are there once."""
    with Path("/", path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class SlowStore(AsyncFileSystem):  # type: ignore[misc]  # has no types
    """Objects are the files of this machine: ``slow://tmp/x`` is ``/tmp/x``."""

    protocol = SCHEME

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._free_at = 0.0

    async def _answer(self, size: int) -> None:
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + size / RATE
        await asyncio.sleep(self._free_at + LATENCY - now)

    async def _info(self, path: str, **settings: Any) -> dict[str, Any]:
        await self._answer(0)
        return {"name": path, "size": len(_open(self._strip_protocol(path))), "type": "file"}

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **settings: Any) -> bytes:
        data = _open(self._strip_protocol(path))[start:end]
        await self._answer(len(data))
        return data


def register() -> None:
    """Make the scheme known."""
    fsspec.register_implementation(SCHEME, SlowStore, clobber=True)


def pack_tars(source: Path, folder: Path, num_archives: int = 4) -> None:
    """Put the files of a folder into archives, as WebDataset has them."""
    folder.mkdir()
    files = sorted(source.iterdir())
    for number in range(num_archives):
        with tarfile.open(folder / f"shard-{number:05}.tar", "w") as archive:
            for file in files[number::num_archives]:
                archive.add(file, file.name)


def list_often(folder: Path, manifest: Path) -> int:
    """Give every archive further names, and list their samples in the manifest, too. Returns the bytes of a sample."""
    lines = manifest.read_text().splitlines()
    rows = [line for line in lines if ".tar:" in line]
    names = range(NUM_NAMES)
    for archive in sorted(folder.iterdir()):
        for number in names:
            os.link(archive, archive.with_name(f"{archive.stem}-{number}.tar"))
    often = [row.replace(".tar:", f"-{number}.tar:", 1) for number in names for row in rows]
    manifest.write_text("\n".join([*lines[: -len(rows)], *often]) + "\n")

    return sum(int(row.partition("\t")[0].rpartition(":")[2]) for row in rows) // len(rows)


def compare_store(arguments: argparse.Namespace) -> None:
    """Print how fast samples come from a slow store, and from the local disk."""
    # Every sample is to come from the store, also in the second epoch.
    os.environ["D2V_CACHE_GB"] = "0"
    register()
    print("| input | local: samples/s | MB/s | store: samples/s | ratio | to the store's own rate, if that is less | per core |")
    print("|---|---|---|---|---|---|---|")
    for kind in arguments.inputs:
        if kind == "text":
            continue  # has no archives
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            common: dict[str, Any] = {"labels": None, "valid_percent": 0.0, "seed": 1, "shard_size": None, "workers": None}
            if kind == "image":
                make_images(folder / "files")
                pack_tars(folder / "files", folder / "tars")
                prepare_images([folder / "tars"], folder / "local", **common)
            else:
                make_recordings(folder / "files")
                pack_tars(folder / "files", folder / "tars")
                audio: dict[str, Any] = {"sample_rate": 16_000, "segment_seconds": None, "fairseq": False}
                prepare_audio([folder / "tars"], folder / "local", **audio, **common)
            size = list_often(folder / "tars", folder / "local" / "train.tsv")
            (folder / "remote").mkdir()
            _, _, rows = (folder / "local" / "train.tsv").read_text().partition("\n")
            (folder / "remote" / "train.tsv").write_text(f"{SCHEME}:/{folder}/tars\n{rows}")
            found = [
                [measure(read_ours(kind, folder / form), arguments.seconds) for form in ("local", "remote")]
                for _ in range(arguments.repeats)
            ]
        local, remote = ([max(rates) for rates in zip(*side, strict=True)] for side in zip(*found, strict=True))
        ratios = f"{remote[1] / local[1]:.2f} | {remote[1] / min(local[1], RATE / size):.2f} | {remote[0] / local[0]:.2f}"
        print(f"| {kind} | {local[1]:,.0f} | {local[1] * size / 1e6:,.1f} | {remote[1]:,.0f} | {ratios} |", flush=True)
