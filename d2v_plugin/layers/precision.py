"""The dtype in which products are computed, and what is to be computed in its own."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with ``x``: that of autocast on its device, if it is on, otherwise its own."""
    device = _autocast_device(x)
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which functions of ``x`` keep the dtypes that they are given."""
    return torch.autocast(_autocast_device(x), enabled=False)


def _autocast_device(x: Tensor) -> str:
    return "cpu" if x.is_meta else x.device.type  # there is none for `meta`
