"""Samples of equal contents in different splits, which make a score say more than it should."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from d2v_plugin.data.preparation.common import TRAIN

_CHUNK = 1 << 20


def find_duplicates(samples: Iterable[tuple[str, str, bytes]]) -> list[tuple[str, str]]:
    """Pairs of names: the first of its contents in ``train``, and each with the same contents in ``valid``.

    :param samples: split, name and digest of the contents of each.
    """
    train: dict[bytes, str] = {}
    valid: list[tuple[str, bytes]] = []
    for split, name, digest in samples:
        if split == TRAIN:
            train.setdefault(digest, name)
        else:
            valid.append((name, digest))

    return [(train[digest], name) for name, digest in valid if digest in train]


def digest_file(path: Path) -> bytes:
    """:raises OSError: it cannot be read."""
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.digest()


def digest_lines(lines: Iterable[str]) -> bytes:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).digest()
