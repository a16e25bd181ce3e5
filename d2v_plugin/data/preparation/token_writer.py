"""Writing token ids: shards first, and when all are there the manifest that names them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from d2v_plugin.core.storage import put_in_place
from d2v_plugin.data.preparation.common import remove_other_shards, write_manifest
from d2v_plugin.data.text import END, TokenIds, Vocabulary


class TokenWriter:
    """Writes the documents of one split into shards, and their manifest.

    Shards are named after their contents and the tokenizer, so that they take the place of none that an older manifest names.
    """

    def __init__(self, out: Path, split: str, vocabulary: Vocabulary, shard_size: int, *, is_shipped: bool = False) -> None:
        """:param is_shipped: for a dataset that never changes: contents are not in names, nor the vocabulary in the manifest."""
        self.num_documents = 0
        self.num_tokens = 0
        self._out = out
        self._split = split
        self._vocabulary = vocabulary
        self._dtype: np.dtype[Any] = vocabulary.dtype
        self._max_tokens = max(1, shard_size // self._dtype.itemsize)
        self._is_shipped = is_shipped
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._labelled: list[tuple[int, int, int, str]] = []
        self._tokens: BinaryIO | None = None
        self._index: BinaryIO | None = None
        self._hash = hashlib.sha256()

    def add(self, lines: Sequence[TokenIds], label: str | None) -> None:
        """Append a document: its lines end with ``</s>``, and so does the document."""
        if self._tokens is None or self._index is None:
            self._open_shard()
        assert self._tokens is not None and self._index is not None
        pieces = [np.append(line, END) for line in lines]
        size, start = sum(map(len, pieces)), self._sizes[-1]
        if label is not None:
            self._labelled.append((len(self._sizes) - 1, start, size, label))
        ends = start + np.cumsum([*map(len, pieces), 1])
        tokens = np.concatenate([*pieces, [END]]).astype(self._dtype)
        for file, data in ((self._tokens, tokens.tobytes()), (self._index, ends.astype("<i8").tobytes())):
            file.write(data)
            self._hash.update(data)
        self._sizes[-1] += size + 1
        self.num_documents += 1
        self.num_tokens += size + 1
        if self._sizes[-1] >= self._max_tokens:
            self._close_shard()

    def close(self) -> None:
        """Finish the last shard."""
        self._close_shard()

    def write_manifest(self) -> None:
        """Write a row for each document if all of them have labels, else a row for each shard."""
        rows: list[tuple[object, ...]] = list(zip(self._names, self._sizes, strict=True))
        if len(self._labelled) == self.num_documents:
            item = self._dtype.itemsize
            rows = [
                (f"{self._names[shard]}:{start * item}:{size * item}", size, label)
                for shard, start, size, label in self._labelled
            ]
        digest = None if self._is_shipped else self._vocabulary.tokenizer
        write_manifest(self._out / f"{self._split}.tsv", ["."], None, rows, vocabulary=digest)

    def remove_others(self) -> None:
        """Remove the shards of earlier runs."""
        remove_other_shards(self._out, self._split, {*self._names, *map(_index_of, self._names)}, "bin|idx")

    def discard(self) -> None:
        """Remove a shard that was not finished."""
        for file in (self._tokens, self._index):
            if file is not None:
                file.close()
                Path(file.name).unlink(missing_ok=True)

    def _open_shard(self) -> None:
        aside = f".{self._split}.{uuid.uuid4().hex}"
        self._tokens, self._index = ((self._out / f"{aside}.{kind}.tmp").open("wb") for kind in ("bin", "idx"))
        self._hash = hashlib.sha256(f"{self._vocabulary.tokenizer} {self._dtype}".encode())
        self._sizes.append(0)

    def _close_shard(self) -> None:
        if self._tokens is None or self._index is None:
            return
        digest = "" if self._is_shipped else f"-{self._hash.hexdigest()[:16]}"
        name = f"{self._split}-{len(self._names):05}{digest}.bin"
        for file, final in ((self._index, _index_of(name)), (self._tokens, name)):
            file.close()
            put_in_place(Path(file.name), self._out / final)
        self._names.append(name)
        self._tokens = self._index = None


def _index_of(name: str) -> str:
    return str(Path(name).with_suffix(".idx"))
