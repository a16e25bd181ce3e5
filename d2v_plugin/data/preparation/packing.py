"""Packing files into shards; those whose files have not changed since the last run stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2v_plugin.data.preparation.cache import InspectionCache, read_stamp
from d2v_plugin.data.shards import ShardWriter

Files = Sequence[tuple[str, Path]]


def pack(split: str, files: Files, out: Path, shard_size: int, cache: InspectionCache) -> list[str]:
    """Copy files, all remembered by ``cache``, into shards of about ``shard_size`` bytes; shards of an earlier run are removed.

    :param files: the name of each in its archive, and where it is.
    :returns: (files,) where each lies, as ``path:offset:size``.
    """
    places: list[str] = []
    shards: set[Path] = set()
    while len(places) < len(files):
        path = out / f"{split}-{len(shards):05}.zip"
        done = len(places)
        facts = _find_shard(path, files[done:], shard_size, cache)
        if facts is None:
            facts = _write_shard(path, files[done:], shard_size, cache)
        # By its name alone, since the folder may be moved.
        cache.remember(Path(path.name), read_stamp(path), facts)
        places += facts["places"]
        shards.add(path)
    for old in out.glob(f"{split}-*.zip"):
        if old not in shards:
            old.unlink()

    return places


def _find_shard(path: Path, files: Files, shard_size: int, cache: InspectionCache) -> dict[str, Any] | None:
    """Facts about a shard, if it holds what one that starts with these files would hold now."""
    if not path.exists() or (facts := cache.find(Path(path.name), read_stamp(path))) is None:
        return None
    found: dict[str, Any] = facts
    count = len(found["places"])
    is_complete = found["is_full"] or count == len(files)
    is_same = found["shard_size"] == shard_size and found["content"] == cache.digest(files[:count])
    return found if is_complete and is_same else None


def _write_shard(path: Path, files: Files, shard_size: int, cache: InspectionCache) -> dict[str, Any]:
    # A run that reads the old one may go on to do so.
    path.unlink(missing_ok=True)
    places = []
    with ShardWriter(path) as writer:
        for name, file in files:
            places.append(writer.add(name, file.read_bytes()))
            if writer.size >= shard_size:
                break
        is_full = writer.size >= shard_size

    return {"shard_size": shard_size, "content": cache.digest(files[: len(places)]), "is_full": is_full, "places": places}
