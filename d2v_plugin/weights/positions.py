"""Position tables of images at another resolution than the checkpoint's."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from d2v_plugin.core.batch import Grid
from d2v_plugin.core.log import log
from d2v_plugin.models.positions import NUM_CLS_ROWS, resize_absolute, resize_relative
from d2v_plugin.weights.state import State

_ABSOLUTE = (".fixed_positional_encoder.positions", "encoder.pos_embed")
_OF_SOUND = "modality_encoders.AUDIO.fixed_positional_encoder.positions"
_RELATIVE = ".relative_position_bias_table"


def resize_positions(state: State, expected: Mapping[str, Tensor], *, old: Grid | None = None, new: Grid | None = None) -> None:
    """Interpolate the position tables of a checkpoint to the sizes that the model has, in place.

    Absolute positions of data2vec 2.0, (1, S, D), and relative ones of data2vec 1.0, (P, H), are stretched, see
    :mod:`d2v_plugin.models.positions`. Biases of ALiBi are computed from distances in patches; there is no table, and their
    learned scale stays.

    :param expected: the model's own tensors.
    :param old: the grid of the checkpoint; None = it is square.
    :param new: the grid of the model, likewise.
    """
    for key, table in list(state.items()):
        if key not in expected or (table.shape == expected[key].shape and old == new):
            continue
        if key == _OF_SOUND:
            # Positions count from the start of the recording, whatever the longest one is.
            state[key] = expected[key]
            continue
        if key.endswith(_ABSOLUTE):
            before, after = old or _square(table.size(1)), new or _square(expected[key].size(1))
            if before and after:
                state[key] = resize_absolute(table, before, after)
        elif key.endswith(_RELATIVE):
            before, after = old or _square_of_offsets(table), new or _square_of_offsets(expected[key])
            if before and after:
                state[key] = resize_relative(table, before, after)
        else:
            continue
        if before and after:
            log.info("Interpolated `{}` from {} x {} to {} x {} patches.", key, *before, *after)


def _square_of_offsets(table: Tensor) -> Grid | None:
    """The square grid of so many relative positions; None = there is none."""
    width = _square(len(table) - NUM_CLS_ROWS)
    return ((width[0] + 1) // 2,) * 2 if width and width[0] % 2 else None


def _square(size: int) -> Grid | None:
    """The square grid of this many patches; None = there is none."""
    side = math.isqrt(max(0, size))
    return (side, side) if side and side * side == size else None
