"""What a file of weights does not say by itself: how inputs are read and what outputs mean, as plain data."""

from __future__ import annotations

from typing import Any

from d2v_plugin.core.batch import Modality
from d2v_plugin.exporting.exportable import Exportable


def describe_use(exportable: Exportable) -> dict[str, Any]:
    """Modality, preparation of inputs, criterion and labels; what nothing says is left out."""
    model, modality = exportable.model, exportable.modality
    frontend = model.config.frontends[modality]
    reading = getattr(getattr(exportable.task, "config", None), modality.value, None)
    content: dict[str, Any] = {"modality": modality.value}
    if modality is Modality.AUDIO:
        content["shortest"] = model.shortest_input(modality)
        content["samples_per_frame"] = frontend.samples_per_frame
        if reading is not None:
            content |= {"sample_rate": reading.sample_rate, "normalize": reading.normalize}
    elif modality is Modality.IMAGE:
        content["image_size"] = frontend.image_size
        if reading is not None:
            content |= {"mean": list(reading.mean), "std": list(reading.std), "eval_resize": reading.eval_resize}
    else:
        content |= {"vocab_size": frontend.vocab_size, "pad_idx": frontend.pad_idx, "max_positions": frontend.max_positions}
    if exportable.criterion is not None and exportable.provenance is not None:
        content["criterion"] = exportable.provenance.sections["criterion"]["name"]
        content["labels"] = None if exportable.labels is None else list(exportable.labels.names)

    return content
