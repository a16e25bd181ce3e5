"""A folder for Hugging Face's transformers: data2vec 1.0 by the classes that transformers has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from fairseq2.logging import log
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.exporting.comparison import Differences, compare_outputs, compute_outputs, draw_batch, largest_difference
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.exporting.hugging_face.inputs import write_inputs
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.weights.convert.hugging_face_export import build_hugging_face
from d2v_plugin.weights.convert.hugging_face_heads import CTC, export_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SPEECH: Final = {"processor_class": "Wav2Vec2Processor"}
_INPUT_NAMES: Final = {Modality.AUDIO: "input_values", Modality.IMAGE: "pixel_values", Modality.TEXT: "input_ids"}
_READERS: Final = {Modality.AUDIO: "AutoFeatureExtractor", Modality.IMAGE: "AutoImageProcessor", Modality.TEXT: "AutoTokenizer"}


def export_classes(exportable: Exportable, folder: Path) -> Differences:
    """Write a folder for ``from_pretrained``, with the head, and compare what it loads.

    :raises CheckpointError: the model or its head is none that the classes have.
    """
    model, criterion = exportable.model, exportable.criterion
    assert isinstance(model, Data2Vec1Model)
    head = None
    if criterion is not None:
        assert exportable.provenance is not None
        head = export_head(model.config, exportable.provenance, criterion.state_dict())
    if model.config.head_layers > 0:
        log.info(
            "The prediction head of {} (`{}`) is left out: no class of transformers has it.", exportable.path, model.head_name
        )
    built = build_hugging_face(model, head)
    folder.mkdir()
    built.save_pretrained(folder)
    write_inputs(exportable, folder, speech=_SPEECH if head is not None and head.architecture == CTC else {})

    loaded: PreTrainedModel = type(built).from_pretrained(folder).eval()
    differences = dict(_compare_all(exportable, loaded))
    (folder / "README.md").write_text("\n".join(_write_card(exportable, type(built).__name__)) + "\n", encoding="utf-8")

    return differences


@torch.no_grad()
def _compare_all(exportable: Exportable, loaded: PreTrainedModel) -> Differences:
    """Compare a padded batch; of speech, which transformers pads as fairseq did, each recording by itself."""
    model = exportable.model
    batch = draw_batch(model, exportable.modality)
    if not _pads_otherwise(exportable):
        return _compare(exportable, loaded, batch)

    found: dict[str, float] = {}
    for row, padding in zip(batch.inputs, _padding_of(batch), strict=True):
        alone = Batch(batch.modality, row[~padding].unsqueeze(0), batch.ids[:1])
        for what, value in _compare(exportable, loaded, alone).items():
            found[what] = max(found.get(what, 0.0), value)
    log.warning(
        "Each recording alone is equal. In a batch of several lengths they differ by up to {:.1e} near their ends, because "
        "transformers treats padding as fairseq did.",
        max(_compare(exportable, loaded, batch).values()),
    )

    return found


def _compare(exportable: Exportable, loaded: PreTrainedModel, batch: Batch) -> Differences:
    expected = compute_outputs(exportable, batch)
    inputs: dict[str, Any] = {_INPUT_NAMES[batch.modality]: batch.inputs}
    if batch.padding_mask is not None:
        inputs["attention_mask"] = (~batch.padding_mask).long()
    output = loaded(**inputs, output_hidden_states=True)
    found = dict(compare_outputs(expected, list(output.hidden_states[1:]), getattr(output, "logits", None)))
    if expected.head is None:
        features = exportable.model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)
        theirs = output.last_hidden_state[:, expected.num_extra_tokens :]
        valid = expected.valid[:, expected.num_extra_tokens :]
        found["features"] = largest_difference(features.x[valid], theirs[valid])

    return found


def _padding_of(batch: Batch) -> Tensor:
    return torch.zeros_like(batch.inputs, dtype=torch.bool) if batch.padding_mask is None else batch.padding_mask


def _pads_otherwise(exportable: Exportable) -> bool:
    return exportable.modality is Modality.AUDIO and not exportable.model.config.original_padding


def _write_card(exportable: Exportable, kind: str) -> Iterator[str]:
    modality = exportable.modality
    yield from ("---", "license: unknown  # say which one you give, and what that of the training data allows")
    yield from ("library_name: transformers", "tags:", "- data2vec", f"- {modality.value}", "---", "")
    yield f"# data2vec 1.0 of {modality.value}"
    yield ""
    yield "[arXiv 2202.03555](https://arxiv.org/abs/2202.03555); exported by d2v_plugin."
    reader = "AutoProcessor" if kind == CTC else _READERS[modality]
    yield from ("", "```python", f"from transformers import {reader}, {kind}", "")
    yield f'model = {kind}.from_pretrained("FOLDER")'
    yield f'reader = {reader}.from_pretrained("FOLDER")'
    yield "```"
    if _pads_otherwise(exportable):
        yield ""
        yield "Give it one recording at a time: in a batch, padding changes what is computed near the ends of the shorter ones."
