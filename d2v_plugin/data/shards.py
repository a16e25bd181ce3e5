"""Shards: many small files packed into uncompressed archives, read back by byte range."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from typing_extensions import Self


class ShardWriter:
    """Writes one uncompressed zip archive. The same content gives the same bytes: no dates, no owners.

    Zip rather than tar because tar pads every file to 512 bytes and adds a header of that size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = ZipFile(path, "w", ZIP_STORED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._zip.close()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._zip.start_dir

    def add(self, name: str, data: bytes) -> str:
        """Append a file.

        :returns: ``path:offset:size``, as a manifest beside the archive names it.
        """
        self._zip.writestr(ZipInfo(name), data)
        return f"{self.path.name}:{self._zip.start_dir - len(data)}:{len(data)}"
