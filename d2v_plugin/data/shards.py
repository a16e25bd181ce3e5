"""Shards: many small files packed into uncompressed archives, read back by byte range."""

from __future__ import annotations

import hashlib
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo


class ShardWriter(ZipFile):
    """Writes one uncompressed zip archive. The same content gives the same bytes: no dates, no owners.

    Zip rather than tar because tar pads every file to 512 bytes and adds a header of that size.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w", ZIP_STORED)
        self.path = path
        self._hash = hashlib.sha256()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.start_dir

    @property
    def digest(self) -> str:
        """A short digest of the names and contents so far."""
        return self._hash.hexdigest()[:16]

    def add(self, name: str, data: bytes) -> str:
        """Append a file.

        :returns: ``path:offset:size``, as a manifest beside the archive names it.
        """
        self._hash.update(b"%d %s %d " % (len(name), name.encode(), len(data)))
        self._hash.update(data)
        self.writestr(ZipInfo(name), data)
        return f"{self.path.name}:{self.start_dir - len(data)}:{len(data)}"
