"""A plugin of pytest with which tests/parity runs on another device and writes down the largest error of each test.

Variables: ``PARITY_DEVICE``, and ``PARITY_ERRORS``, the file.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import fairseq2.recipe  # noqa: F401  # before fairseq2's other modules, which need it
import safetensors.torch
import torch
from torch import Tensor

from d2v_plugin.training.numerics import set_numerics

DEVICE = os.environ["PARITY_DEVICE"]
ERRORS: dict[str, float] = {}

# Before the tests import their helpers: models, batches and what is expected are on the device from the start.
torch.set_default_device(DEVICE)
set_numerics(torch.device(DEVICE), deterministic=True, allow_tf32=False)
safetensors.torch.load_file = partial(safetensors.torch.load_file, device=DEVICE)
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "parity"))

import comparison  # type: ignore[import-not-found]  # noqa: E402

assert_equal_enough = comparison.assert_close


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    error = float((actual.detach().double() - expected.detach().double()).abs().max() / max(1.0, float(expected.abs().max())))
    test = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0]
    ERRORS[test] = max(error, ERRORS.get(test, 0.0))
    assert_equal_enough(actual, expected, tolerance)


comparison.assert_close = assert_close


def pytest_sessionfinish() -> None:
    Path(os.environ["PARITY_ERRORS"]).write_text(json.dumps(ERRORS))
