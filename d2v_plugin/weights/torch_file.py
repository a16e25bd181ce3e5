"""Files of ``torch.save`` from outside: read without running anything that they contain."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from fairseq2.model_checkpoint import CorruptModelCheckpointError

from d2v_plugin.core.errors import CheckpointError, root_cause
from d2v_plugin.data.files import check_regular

INERT_CLASSES: Final = (
    "argparse.Namespace",  # `args` of old checkpoints
    "fairseq.data.dictionary.Dictionary",  # the labels of a fine-tuned model, in `task_state`
    "numpy.core.multiarray.scalar",  # statistics in `extra_state`
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
"""What fairseq's checkpoints contain beside tensors and plain data. None of it is used as what it says it is: every one is
read as an :class:`InertObject`."""


class InertObject:
    """Stands for an object of one of :data:`INERT_CLASSES`: attributes without behaviour."""

    def __new__(cls, *args: object) -> InertObject:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update({name: value for name, value in state.items() if isinstance(name, str)})


def read_torch_file(path: Path) -> object:
    """Read a checkpoint that may come from anywhere.

    :returns: plain data and tensors on the CPU, mapped from the file where its format allows it.
    :raises CheckpointError: the file cannot be read, is damaged, is no checkpoint, or would run code.
    """
    inert = torch.serialization.safe_globals([(InertObject, name) for name in INERT_CLASSES])
    with explained(path), inert:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what the bytes of a file provoke as a :class:`CheckpointError` that names the file; what is no file is not opened."""
    try:
        check_regular(path)
        yield
    except OSError as ex:
        raise CheckpointError(f"{path}: {(ex.strerror or str(ex)).rstrip('.')}.") from ex
    except CheckpointError:
        raise
    except Exception as ex:
        raise CheckpointError(f"{path}: {explain_unreadable(path, ex)}") from ex


POINTER: Final = "this is only git-lfs's pointer to the file; fetch the file itself by `git lfs pull`."


def is_pointer(path: Path) -> bool:
    """Tell whether a file is what git leaves where git-lfs is not installed."""
    with path.open("rb") as file:
        return file.read(64).startswith(b"version https://git-lfs.")


def explain_unreadable(path: Path, ex: BaseException) -> str:
    """One sentence for the exception with which PyTorch refused a file."""
    if (found := re.search(r"GLOBAL (\S+)", str(ex))) is not None:
        return f"refused: the file asks to run or create `{found[1]}`, which is not data. Nothing of it was executed."
    if is_pointer(path):
        return POINTER
    with path.open("rb") as file:
        start = file.read(2)
    if not start:
        return "the file is empty."
    if start == b"PK":
        return "the checkpoint is truncated or damaged."

    return "not a PyTorch checkpoint, or a damaged one."


def explain_corrupt(path: Path, ex: CorruptModelCheckpointError) -> str:
    """fairseq2's message names the file; the reason is in what caused it."""
    file = getattr(ex.__cause__, "file", None)
    return f"{file}: {explain_unreadable(file, root_cause(ex))}" if isinstance(file, Path) else f"{path}: {ex}"


def _check_sums(path: Path) -> None:
    """PyTorch does not look at the checksums that it writes."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{path}: the checkpoint is damaged: the checksum of `{damaged}` is wrong.")
