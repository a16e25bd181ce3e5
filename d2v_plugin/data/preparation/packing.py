"""Packing files into shards; those whose files have not changed since the last run stay as they are.

A shard is named after its contents and never overwritten: the manifest of the last run keeps meaning what it meant until the
new one takes its place.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2v_plugin.core.storage import put_in_place
from d2v_plugin.data.files import Location, read_bytes
from d2v_plugin.data.preparation.cache import InspectionCache, read_stamp
from d2v_plugin.data.preparation.common import make_printable
from d2v_plugin.data.shards import ShardWriter

Files = Sequence[tuple[str, Location]]


def pack(split: str, files: Files, out: Path, shard_size: int, cache: InspectionCache) -> list[str]:
    """Copy files, all remembered by ``cache``, into shards of about ``shard_size`` bytes.

    :param files: the name of each in its archive, and where it is.
    :returns: (files,) where each lies, as ``path:offset:size``.
    """
    places: list[str] = []
    number = 0
    while len(places) < len(files):
        shard = f"{split}-{number:05}"
        rest = files[len(places) :]
        facts = _find_shard(shard, rest, out, shard_size, cache) or _write_shard(shard, rest, out, shard_size, cache)
        # By its number alone, since the folder may be moved.
        cache.remember(Path(shard), "", facts)
        places += [f"{facts['name']}:{place}" for place in facts["places"]]
        number += 1

    return places


def _find_shard(shard: str, files: Files, out: Path, shard_size: int, cache: InspectionCache) -> dict[str, Any] | None:
    """Facts about a shard, if it holds what one that starts with these files would hold now."""
    if (facts := cache.find(Path(shard), "")) is None:
        return None
    found: dict[str, Any] = facts
    path, count = out / found["name"], len(found["places"])
    is_complete = found["is_full"] or count == len(files)
    is_same = found["shard_size"] == shard_size and found["content"] == cache.digest(files[:count])
    return found if is_complete and is_same and path.exists() and read_stamp(path) == found["stamp"] else None


def _write_shard(shard: str, files: Files, out: Path, shard_size: int, cache: InspectionCache) -> dict[str, Any]:
    aside = out / f".{shard}.{uuid.uuid4().hex}.tmp"
    places = []
    try:
        with ShardWriter(aside) as writer:
            for name, file in files:
                places.append(writer.add(make_printable(name), bytes(read_bytes(file))).partition(":")[2])
                if writer.size >= shard_size:
                    break
            is_full, path = writer.size >= shard_size, out / f"{shard}-{writer.digest}.zip"
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)

    facts = {"name": path.name, "stamp": read_stamp(path), "shard_size": shard_size, "is_full": is_full, "places": places}
    return {**facts, "content": cache.digest(files[: len(places)])}
