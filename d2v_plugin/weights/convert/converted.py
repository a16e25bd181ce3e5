"""What every conversion of a fairseq checkpoint gives, and the checks that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.families import AnyConfig
from d2v_plugin.weights.convert.transfer import Transfer
from d2v_plugin.weights.state import State, build_skeleton, compare

TEACHER_KEY: Final = "_ema"


@dataclass
class Converted:
    """A model in our terms."""

    config: AnyConfig
    student: State
    teacher: State | None
    notes: list[str]
    pretraining: dict[str, Any]
    transfer: Transfer


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Name the file whose configuration cannot be converted, whatever a malformed one provokes."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as ex:
        if isinstance(ex, CheckpointError) and str(ex).startswith(str(path)):
            raise
        raise CheckpointError(f"{path}: the configuration cannot be converted: {ex}") from ex


def check_agreement(
    path: Path, config: AnyConfig, student: State, teacher: State | None, is_averaged: Callable[[str], bool]
) -> None:
    """Compare student and teacher with what the configuration says.

    :param is_averaged: whether the teacher has a weight of its own for a name of the student's.
    :raises CheckpointError: they differ.
    """
    expected, given = build_skeleton(config, num_tensors=len(student), path=path).state_dict(), dict(student)
    if teacher is not None:
        expected |= {f"{TEACHER_KEY}.{key}": tensor for key, tensor in expected.items() if is_averaged(key)}
        given |= {f"{TEACHER_KEY}.{key}": tensor for key, tensor in teacher.items()}
    compare(expected, given).raise_if_any(f"{path} does not hold the weights of the model that its configuration describes:")
