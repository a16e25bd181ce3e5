"""Shards of features on disk, written aside and renamed: what is there is complete."""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.log import log
from d2v_plugin.core.storage import (
    Record,
    check_directory,
    describe_file,
    has_record,
    put_in_place,
    write_atomically,
    write_record,
)

FORMAT_VERSION: Final = 1
INDEX_FILE: Final = "index.json"
IDS: Final = "ids"
LENGTHS: Final = "lengths"


@dataclass(frozen=True)
class ShardRange:
    """The samples of a shard."""

    number: int

    start: int
    """The first sample."""

    stop: int
    """The one after the last."""


def cut_shards(num_samples: int, shard_size: int) -> list[ShardRange]:
    """The shards of a split; the same for any number of processes."""
    starts = range(0, num_samples, shard_size)
    return [ShardRange(number, start, min(start + shard_size, num_samples)) for number, start in enumerate(starts)]


ContentT = TypeVar("ContentT")


class ShardStore(ABC, Generic[ContentT]):
    """A folder of shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, shard: ShardRange, content: ContentT) -> None:
        """Write a shard; after a crash at any moment it is there whole, or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path_of(shard)
        aside = path.with_name(f".{path.name}.tmp")
        if aside.is_dir():
            shutil.rmtree(aside)
        self._save(aside, content)
        put_in_place(aside, path)

    def has(self, shard: ShardRange) -> bool:
        return self.path_of(shard).exists()

    def is_whole(self, shard: ShardRange) -> bool:
        """Tell whether a shard is there as it was written; reads it. A damaged one is named, and is to be written again."""
        if not self.has(shard):
            return False
        try:
            self._check(shard)
        except (OSError, ValueError, LookupError, EOFError, SafetensorError) as ex:
            log.warning("{} is damaged and is computed again: {}", self.path_of(shard), ex)
            return False
        return True

    def find_missing(self, shards: Sequence[ShardRange], what: str) -> list[ShardRange]:
        """List those that are to be written, and log how many there are; reads the others.

        :param what: the log calls them.
        """
        missing = [shard for shard in shards if not self.is_whole(shard)]
        log.info("{:,} {}, {:,} of them there already.", len(shards), what, len(shards) - len(missing))

        return missing

    @abstractmethod
    def path_of(self, shard: ShardRange) -> Path:
        """The place of a shard."""

    @abstractmethod
    def _save(self, path: Path, content: ContentT) -> None: ...

    @abstractmethod
    def _check(self, shard: ShardRange) -> None:
        """Raise an error unless a shard is as it was written. Of those of earlier versions, which have no hashes, only the header
        can be checked."""


class FeatureStore(ShardStore[Mapping[str, Tensor]]):
    """A folder of shards of features."""

    @abstractmethod
    def read_header(self, shard: ShardRange) -> tuple[dict[str, list[int]], list[int]]:
        """The shapes of a shard's arrays, by name, and its ids; does not read the features."""


class SafetensorsStore(FeatureStore):
    """One file per shard."""

    @override
    def path_of(self, shard: ShardRange) -> Path:
        return self.folder / f"shard-{shard.number:05}.safetensors"

    @override
    def read_header(self, shard: ShardRange) -> tuple[dict[str, list[int]], list[int]]:
        with safe_open(self.path_of(shard), framework="pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping

            return shapes, file.get_tensor(IDS).tolist()

    @override
    def _save(self, path: Path, content: Mapping[str, Tensor]) -> None:
        # One entry alone: safetensors writes several in any order, and shards are to be the same in every run.
        save_file(dict(content), path, metadata={"sha256": _hash_arrays(content)})

    @override
    def _check(self, shard: ShardRange) -> None:
        self.read_header(shard)
        with safe_open(self.path_of(shard), framework="pt") as file:
            expected = (file.metadata() or {}).get("sha256")
            if expected is not None and _hash_arrays({name: file.get_tensor(name) for name in file.keys()}) != expected:  # noqa: SIM118
                raise ValueError("its contents have changed.")


class NumpyStore(FeatureStore):
    """One folder per shard with one file per array."""

    @override
    def path_of(self, shard: ShardRange) -> Path:
        return self.folder / f"shard-{shard.number:05}"

    @override
    def read_header(self, shard: ShardRange) -> tuple[dict[str, list[int]], list[int]]:
        files = sorted(self.path_of(shard).glob("*.npy"))
        arrays = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files}
        return {name: list(array.shape) for name, array in arrays.items()}, arrays[IDS].tolist()

    @override
    def _save(self, path: Path, content: Mapping[str, Tensor]) -> None:
        path.mkdir()
        for name, array in content.items():
            np.save(path / f"{name}.npy", array.numpy(), allow_pickle=False)
        write_record(path, Record({file.name: describe_file(file) for file in path.glob("*.npy")}, {}))

    @override
    def _check(self, shard: ShardRange) -> None:
        self.read_header(shard)
        if has_record(self.path_of(shard)):
            check_directory(self.path_of(shard))


def _hash_arrays(arrays: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name].contiguous()
        found.update(f"{name} {list(array.shape)} {array.dtype}".encode())
        found.update(array.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


STORES: Final[dict[str, type[FeatureStore]]] = {"safetensors": SafetensorsStore, "numpy": NumpyStore}
"""By ``features.format``."""


def begin_index(folder: Path, settings: Mapping[str, Any], *, write: bool, what: str = "features") -> None:
    """Say what the shards in a folder are going to be.

    :param settings: all that they depend on, as plain data.
    :param write: whether this process writes the file, if there is none.
    :param what: they hold.
    :raises RecipeError: the folder holds those of other settings.
    """
    path = folder / INDEX_FILE
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        except (ValueError, KeyError, TypeError):
            raise RecipeError(f"{path} is not an index of {what}; choose another output directory.") from None
        changed = [f"`{name}` was {found.get(name)}, but is {now}" for name, now in settings.items() if found.get(name) != now]
        if changed:
            raise RecipeError(f"{folder} holds other {what}: {'; '.join(changed)}. Choose another output directory.")
    elif write:
        write_index(folder, {"complete": False, "settings": settings}, what=what)


def finish_index(
    folder: Path, settings: Mapping[str, Any], info: Mapping[str, Any], store: FeatureStore, shards: Sequence[ShardRange]
) -> int:
    """List the shards, all of which are there.

    :param info: further sections, for people.
    :returns: how many samples they have.
    """
    listed, num_samples = [], 0
    for shard in shards:
        shapes, ids = store.read_header(shard)
        num_samples += len(ids)
        missing = sorted(set(range(shard.start, shard.stop)) - set(ids))
        path = str(store.path_of(shard).relative_to(folder))
        listed.append({"file": path, "start": shard.start, "stop": shard.stop, "missing": missing, "shapes": shapes})
    write_index(folder, {"complete": True, "num_samples": num_samples, "settings": settings, **info, "shards": listed})

    return num_samples


def write_index(folder: Path, content: Mapping[str, Any], *, what: str = "features") -> None:
    """Write what begins with the name and the version of the format."""
    content = {"format": f"d2v_plugin_{what}", "format_version": FORMAT_VERSION, **content}
    write_atomically(folder / INDEX_FILE, json.dumps(content, indent=1) + "\n")
