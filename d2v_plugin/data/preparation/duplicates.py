"""Samples of equal contents in different splits, which make a score say more than it should."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from d2v_plugin.data.files import Location, read_bytes
from d2v_plugin.data.preparation.common import TRAIN

_CHUNK = 1 << 20


def find_duplicates(samples: Iterable[tuple[str, str, bytes]]) -> list[dict[str, str]]:
    """Pairs of samples with the same contents in different splits: the first, in ``train`` if there is one, and each other.

    :param samples: split, name and digest of the contents of each.
    :returns: for each pair the names by split.
    """
    ordered = sorted(samples, key=lambda sample: sample[0] != TRAIN)
    first: dict[bytes, tuple[str, str]] = {}
    for split, name, digest in ordered:
        first.setdefault(digest, (split, name))

    return [{first[digest][0]: first[digest][1], split: name} for split, name, digest in ordered if first[digest][0] != split]


def digest_file(location: Location) -> bytes:
    """:raises OSError: it cannot be read."""
    if location.is_remote or location.size is not None:
        return hashlib.blake2b(read_bytes(location), digest_size=16).digest()
    found = hashlib.blake2b(digest_size=16)
    with open(location.path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.digest()


def digest_lines(lines: Iterable[str]) -> bytes:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).digest()
