"""Our own format: the directory that :func:`d2v_plugin.load` reads, without what only training needs."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import torch

from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.exporting.comparison import Differences, compare_outputs, compute_outputs, draw_batch
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.weights.directory import write_directory
from d2v_plugin.weights.export import export_encoder
from d2v_plugin.weights.loading import load


def export_directory(exportable: Exportable, folder: Path) -> Differences:
    """Write encoder and head, and compare what was written."""
    content = export_encoder(exportable.path, exportable.weights)
    if exportable.criterion is not None:
        content = replace(
            content, head=exportable.criterion.state_dict(), provenance=exportable.provenance, files=exportable.files
        )
    write_directory(folder, content)

    criterion = copy(exportable.criterion)
    if criterion is None:
        model = load(folder)
    else:
        model = load_trained(folder, criterion, labels=exportable.labels, device=torch.device("cpu"))
    written = replace(exportable, model=model, criterion=criterion)
    batch = draw_batch(model, exportable.modality)
    found = compute_outputs(written, batch)

    return compare_outputs(compute_outputs(exportable, batch), found.blocks, found.head)
