"""Position tables of images at another resolution than the checkpoint's."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from d2v_plugin.core.log import log
from d2v_plugin.weights.state import State

_ABSOLUTE = (".fixed_positional_encoder.positions", "encoder.pos_embed")
_OF_SOUND = "modality_encoders.AUDIO.fixed_positional_encoder.positions"
_RELATIVE = ".relative_position_bias_table"

# CLS to patch, patch to CLS, CLS to CLS.
_NUM_CLS_ROWS = 3


def resize_positions(state: State, expected: Mapping[str, Tensor]) -> None:
    """Interpolate the position tables of a checkpoint to the sizes that the model has, in place.

    Absolute positions of data2vec 2.0, (1, S, D), keep their range, as in MAE's fine-tuning: patch 0 and the last patch mean the
    edges of the image at any resolution. Relative ones of data2vec 1.0, (P, H), are stretched in the same way, so that a bias
    belongs to a distance in the image, not to a number of patches. Biases of ALiBi are computed from distances in patches; there
    is no table, and their learned scale stays.

    :param expected: the model's own tensors.
    """
    for key, table in list(state.items()):
        if key not in expected or table.shape == expected[key].shape:
            continue
        if key == _OF_SOUND:
            # Positions count from the start of the recording, whatever the longest one is.
            state[key] = expected[key]
            continue
        if key.endswith(_ABSOLUTE) and (new := _side(expected[key].size(1))) and (old := _side(table.size(1))):
            # (1, S, D) -> (1, D, side, side)
            grid = table.transpose(1, 2).unflatten(2, (old, old))
            state[key] = _resize(grid, new).flatten(2).transpose(1, 2)
        elif key.endswith(_RELATIVE) and (new := _width(expected[key])) and (old := _width(table)):
            offsets, cls_rows = table[:-_NUM_CLS_ROWS], table[-_NUM_CLS_ROWS:]
            # (P - 3, H) -> (1, H, width, width)
            grid = offsets.T.unflatten(1, (old, old)).unsqueeze(0)
            state[key] = cls_rows.new_empty(expected[key].shape)
            state[key][:-_NUM_CLS_ROWS] = _resize(grid, new)[0].flatten(1).T
            state[key][-_NUM_CLS_ROWS:] = cls_rows
        else:
            continue
        log.info("Interpolated `{}` from {} to {} positions a side.", key, old, new)


def _resize(grid: Tensor, side: int) -> Tensor:
    return F.interpolate(grid.float(), (side, side), mode="bicubic", align_corners=False).to(grid.dtype)


def _width(table: Tensor) -> int:
    """The number of offsets a side of a table of relative positions."""
    return _side(len(table) - _NUM_CLS_ROWS)


def _side(size: int) -> int:
    """The side of a square of this size; 0 if there is none."""
    side = math.isqrt(max(0, size))
    return side if side * side == size else 0
