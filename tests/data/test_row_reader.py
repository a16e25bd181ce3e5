"""Rows of a split, read range by range."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.order import RowBatch
from d2v_plugin.data.row_reader import RowReader


def test_ranges_are_read_one_after_the_other_each_to_its_end() -> None:
    """Rows 2 and 3 cannot be read, so that the second range has no batch; the longest rows of a range come first."""

    def read(rows: RowBatch) -> Batch | None:
        kept = [row for row in rows.rows.tolist() if row not in (2, 3)]
        return Batch(Modality.TEXT, torch.zeros(len(kept), 1), torch.tensor(kept)) if kept else None

    reader = RowReader(np.arange(7), None, read, cast(Any, SimpleNamespace(raise_if_too_many=lambda: None)))
    found = [[batch.ids.tolist() for batch in batches] for batches in reader.read_ranges([(0, 2), (2, 4), (4, 7)], 2)]

    assert found == [[[1, 0]], [], [[6, 5], [4]]]
    assert [batch.ids.tolist() for batch in reader.read(4, 6, 1)] == [[5], [4]]
