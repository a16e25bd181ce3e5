"""Readers made of other readers, and what may be asked of any training reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from fairseq2.datasets import DataReader
from typing_extensions import Self, override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.mixture import Mixture

BatchT = TypeVar("BatchT")


class WrappedReader(DataReader[BatchT]):
    """Passes on what another reader reads; subclasses do something between its updates."""

    def __init__(self, reader: DataReader[BatchT]) -> None:
        self._reader = reader

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[BatchT]:
        return next(self._reader)

    @override
    def reset(self) -> None:
        self._reader.reset()

    @override
    def state_dict(self) -> dict[str, object]:
        return self._reader.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._reader.load_state_dict(state_dict)

    def stop_search(self) -> None:
        """See :func:`stop_search`."""
        stop_search(self._reader)

    @property
    @override
    def num_accumulate(self) -> int:
        return self._reader.num_accumulate


class JoinedReader(DataReader[BatchT]):
    """Several readers as one; subclasses say whose turn it is."""

    def __init__(self, readers: Mapping[str, DataReader[Any]]) -> None:
        """:param readers: by the name of their part of the state."""
        self._readers = readers

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def reset(self) -> None:
        for reader in self._readers.values():
            reader.reset()

    @override
    def state_dict(self) -> dict[str, object]:
        return {name: reader.state_dict() for name, reader in self._readers.items()}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        for name, reader in self._readers.items():
            reader.load_state_dict(cast("dict[str, object]", state_dict[name]))

    def stop_search(self) -> None:
        """See :func:`stop_search`."""
        for reader in self._readers.values():
            stop_search(reader)

    @property
    @override
    def num_accumulate(self) -> int:
        return max(reader.num_accumulate for reader in self._readers.values())


def name_sample(reader: DataReader[Batch], modality: Modality, sample: int) -> str:
    """Tell where a sample of a training reader comes from, given its id; the id alone if the reader does not know."""
    name = getattr(reader, "name_sample", None)
    return str(sample) if name is None else name(modality, sample)


def find_mixtures(reader: DataReader[Any], modality: Modality) -> Mapping[Modality, Mixture]:
    """The datasets that a training reader draws its samples from, for each modality that has several.

    :param modality: of a reader of one.
    """
    mixture = getattr(reader, "mixture", None)
    return getattr(reader, "mixtures", {}) if mixture is None else {modality: mixture}


def stop_search(reader: DataReader[Any]) -> None:
    """Let a training reader give up where it finds nothing that can be read, with ``SearchStoppedError``; from any thread."""
    stop = getattr(reader, "stop_search", None)
    if stop is not None:
        stop()
