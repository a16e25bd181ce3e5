"""Files that cards name: local ones, and downloads into fairseq2's cache."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fairseq2.assets import AssetCard, AssetCardError, AssetDownloadError, AssetDownloadManager
from fairseq2.error import NotSupportedError
from fairseq2.utils.uri import Uri

from d2v_plugin.core.errors import CheckpointError, root_cause
from d2v_plugin.core.secrets import hide_in
from d2v_plugin.weights.library import library

_PATIENCE: Final = 30.0
"""Seconds without a byte after which a server counts as unreachable; fairseq2 waits for ever."""


def download(card: AssetCard, field: str) -> Path:
    """Find the file of a card's field, and download it unless fairseq2's cache has it.

    :raises CheckpointError: the card names no file, it does not exist, or it cannot be downloaded; one line.
    """
    try:
        uri = card.field(field).as_uri()
    except AssetCardError as ex:
        raise CheckpointError(f"The card of `{card.name}` is not valid: {ex}") from ex

    return download_uri(uri, card.name)


def download_uri(uri: Uri, name: str) -> Path:
    """As :func:`download`.

    :param name: the model's, for messages.
    """
    if uri.scheme == "file":
        path = uri.to_path()
        if not path.exists():
            raise CheckpointError(f"`{name}` is to be read from {path}, which does not exist.")
        return path
    shown = hide_in(str(uri))
    try:
        with _limited_patience():
            return library().resolve(AssetDownloadManager).download_model(uri)
    except (AssetDownloadError, NotSupportedError, OSError) as ex:
        reason = str(root_cause(ex)).strip("<>") or type(root_cause(ex)).__name__
        raise CheckpointError(
            f"`{name}` could not be downloaded from {shown}: {hide_in(reason).rstrip('.')}. Without a network put the file here "
            f"yourself and name it in a card `{name}@user` (recipes/other_models.md, Named models)."
        ) from ex


@contextmanager
def _limited_patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
