"""Published models by name: their files are downloaded and converted at the first use, and kept in fairseq2's cache.

A card says where the files are; recipes/other_models.md has a table of its fields. A card of the same name with ``@user`` in a
folder of the user's (``FAIRSEQ2_USER_ASSET_DIR``) replaces fields, such as the address.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fairseq2.assets import AssetCard, AssetDirectoryAccessor, PackageAssetMetadataLoader
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.uri import Uri

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.log import log
from d2v_plugin.core.storage import hash_file
from d2v_plugin.weights.convert.fairseq import convert_fairseq
from d2v_plugin.weights.directory import FORMAT_VERSION, is_model_directory, write_directory
from d2v_plugin.weights.download import download, download_uri
from d2v_plugin.weights.library import CARDS, library

FORMAT_FIELD: Final = "checkpoint_format"
"""The field of a card that says whose format its ``checkpoint`` has; without it the file is one of fairseq2's."""

_VERSION: Final = 1
"""Of the conversion: another number converts everything anew."""


def is_foreign(card: AssetCard) -> bool:
    """Tell whether the files of a model have to be converted."""
    return card.has_field(FORMAT_FIELD)


def list_named(resolver: DependencyResolver) -> dict[str, str]:
    """All published models: what each was trained on, by name."""
    cards = resolver.resolve(PackageAssetMetadataLoader).load(CARDS)
    return {name.rstrip("@"): str((cards.maybe_get_metadata(name) or {}).get("trained_on")) for name in sorted(cards.asset_names)}


def convert_named(card: AssetCard) -> Path:
    """The converted directory of a model; the first process that asks downloads and converts, the others wait for it.

    :raises CheckpointError: it can neither be found nor be downloaded, is not the file that the card describes, or cannot be
        converted.
    """
    if (given := _value(card, FORMAT_FIELD)) != "fairseq":
        raise CheckpointError(f"The card of `{card.name}` is not valid: `{FORMAT_FIELD}` must be fairseq, but is {given!r}.")
    out = library().resolve(AssetDirectoryAccessor).get_cache_dir() / "d2v_plugin" / f"{card.name}-{_digest(card)}"
    if is_model_directory(out):
        return out
    try:
        with _locked(out):
            if not is_model_directory(out):
                _convert(card, out)
    except OSError as ex:
        raise CheckpointError(f"`{card.name}` cannot be kept in {out}: {ex.strerror or ex}.") from ex

    return out


def _convert(card: AssetCard, out: Path) -> None:
    path = download(card, "checkpoint")
    expected = _value(card, "sha256")
    if expected is not None and (found := hash_file(path)) != expected:
        raise CheckpointError(f"{path} is not the file of `{card.name}`: its SHA-256 is {found}, but the card says {expected}.")
    labels = download(card, "labels") if card.has_field("labels") else None
    files = [download_uri(uri, card.name) for uri in _uris(card, "files")]
    model = convert_fairseq(path, labels=labels)
    about = {name: value for name in ("license", "trained_on") if (value := _value(card, name)) is not None}
    info = {**model.info, "source": {**model.info["source"], "name": card.name, **about}}
    write_directory(out, replace(model, files=[*model.files, *files], info=info))
    log.info("`{}` was converted into {}. License of its weights: {}.", card.name, out, about.get("license", "not known"))


def _digest(card: AssetCard) -> str:
    """Short digest of what a conversion depends on; of local files also their size and time."""
    sources: list[Any] = [_VERSION, FORMAT_VERSION, _value(card, "sha256")]
    for uri in [*_uris(card, "checkpoint"), *_uris(card, "labels"), *_uris(card, "files")]:
        sources.append(str(uri))
        if uri.scheme == "file" and uri.to_path().exists():
            status = uri.to_path().stat()
            sources.append([status.st_size, status.st_mtime_ns])

    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def _uris(card: AssetCard, field: str) -> list[Uri]:
    """The addresses in a field: one, several, or none; paths are relative to the card."""
    value = _value(card, field)
    addresses = value if isinstance(value, list) else [] if value is None else [value]
    base = card.metadata.get("__base_path__")
    return [Uri.maybe_parse(str(each)) or Uri.from_path(Path(str(base or "."), str(each))) for each in addresses]


def _value(card: AssetCard, name: str) -> object:
    return None if (field := card.maybe_get_field(name)) is None else field.value


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Let one process at a time work on a directory; the kernel releases the lock however the process ends."""
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out.with_name(f".{out.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
