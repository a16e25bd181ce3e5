"""Hugging Face's transformers: data2vec 2.0 by code of its own, which the folder carries."""

from __future__ import annotations

from pathlib import Path

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.exporting.comparison import Differences
from d2v_plugin.exporting.exportable import Exportable


def export_hugging_face(exportable: Exportable, folder: Path) -> Differences:
    """Write a folder for ``from_pretrained``, and compare what it loads."""
    raise CheckpointError("not yet")
