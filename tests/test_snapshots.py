"""Names in state dicts and files of a checkpoint: a refactoring leaves them as they are.

A change that is meant is written down by ``UPDATE_SNAPSHOTS=1 python -m pytest tests/test_snapshots.py`` and named in
CHANGELOG.md, since checkpoints of earlier versions no longer fit then.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.composition import _register_library
from fairseq2.gang import create_fake_gangs
from fairseq2.models import ModelFamily
from fairseq2.runtime.dependency import DependencyContainer
from torch import Tensor

FOLDER = Path(__file__).parent / "snapshots"
RUNS = ("digits", "words", "books", "multimodal")
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def check(name: str, found: Any) -> None:
    """Compare with the file of this name, or write it."""
    path = FOLDER / f"{name}.json"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")

    assert found == json.loads(path.read_text())


def fold(shapes: dict[str, list[int]]) -> dict[str, str]:
    """Names that differ in numbers alone, such as those of equal blocks, in one entry: ``blocks.#.weight: 0-11 [8, 8]``."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for name, shape in shapes.items():
        numbers.setdefault((NUMBER.sub("#", name), str(shape)), []).append("/".join(NUMBER.findall(name)))

    found: dict[str, str] = {}
    for (pattern, shape), which in numbers.items():
        count = f"{len(which)} x " if len(which) > 1 else ""
        ends = f"{which[0]}..{which[-1]} " if which[0] else ""
        found[pattern] = "; ".join(filter(None, [found.get(pattern), f"{count}{ends}{shape}"]))

    return found


@pytest.fixture(scope="module")
def library() -> DependencyContainer:
    container = DependencyContainer()
    _register_library(container)

    return container


@pytest.mark.parametrize("family", ["data2vec", "data2vec1"])
def test_state_dicts_of_all_archs(library: DependencyContainer, family: str) -> None:
    models = library.resolve(ModelFamily, key=family)
    gangs = create_fake_gangs(torch.device("cpu"))
    found = {}
    for arch in sorted(models.get_archs()):
        model = models.create_new_model(
            models.maybe_get_arch_config(arch), gangs, torch.float32, meta=True, init_rank0_only=False
        )
        found[arch] = fold({name: list(tensor.shape) for name, tensor in model.state_dict().items()})

    check(family, found)


@pytest.mark.parametrize("name", RUNS)
def test_files_and_keys_of_a_checkpoint(short_run: Callable[[str], Path], name: str) -> None:
    folder = short_run(name) / "checkpoints" / "step_1"
    found: dict[str, Any] = {"files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())}
    for path in sorted(folder.rglob("*.pt")):
        found[str(path.relative_to(folder))] = fold(shapes_of(torch.load(path, weights_only=True)))

    check(f"checkpoint_{name}", found)


def shapes_of(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a state by its dotted name, with its shape or type."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        return {name: list(value.shape) if isinstance(value, Tensor) else type(value).__name__}

    return {key: shape for last, item in items for key, shape in shapes_of(item, f"{name}.{last}" if name else last).items()}
