"""The formats that a model can be exported to: one file each, one line each here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from d2v_plugin.exporting.comparison import Differences
from d2v_plugin.exporting.directory import export_directory
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.exporting.hugging_face.export import export_hugging_face


@dataclass(frozen=True)
class Format:
    """A way to write a model for use elsewhere."""

    export: Callable[[Exportable, Path], Differences]
    """Writes a folder that does not exist yet, loads what it wrote, and compares it with our own model.

    It raises :class:`d2v_plugin.core.errors.CheckpointError` where the format has no place for something, and names it."""

    tolerance: float = 1e-5
    """The largest difference that counts as equal, in fp32."""


FORMATS: Final[dict[str, Format]] = {
    "d2v_plugin": Format(export_directory),
    "huggingface": Format(export_hugging_face),
}
