"""Archives of ``torch.export``: a program that PyTorch runs, compiles or lowers without this package."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Final

import torch

from d2v_plugin.exporting.comparison import Differences
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.exporting.metadata import describe_use
from d2v_plugin.exporting.program import Program, arguments_of, compare_program, export_program

ARCHIVE_FILE: Final = "model.pt2"
METADATA_FILE: Final = "metadata.json"
"""Inside the archive, too."""


@torch.no_grad()
def export_archive(exportable: Exportable, folder: Path) -> Differences:
    """Write ``model.pt2`` with its metadata, load it and compare it at another batch size and length."""
    program = Program(exportable)
    metadata = json.dumps(
        {"inputs": program.input_names, "outputs": program.output_names, **describe_use(exportable)}, indent=2, ensure_ascii=False
    )
    folder.mkdir()
    (folder / METADATA_FILE).write_text(metadata + "\n", encoding="utf-8")
    torch.export.save(export_program(program), folder / ARCHIVE_FILE, extra_files={METADATA_FILE: metadata})

    with warnings.catch_warnings():
        # Of memory that nobody writes to.
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        loaded = torch.export.load(folder / ARCHIVE_FILE).module()
    outputs = loaded(*arguments_of(program))

    return compare_program(program, dict(zip(program.output_names, outputs, strict=True)))
