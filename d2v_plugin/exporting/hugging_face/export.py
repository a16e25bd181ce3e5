"""A folder for Hugging Face's transformers: data2vec 2.0 by code that the folder carries, 1.0 by the classes there are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.exporting.comparison import Differences, compare_outputs, compute_outputs, draw_batch
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.exporting.hugging_face.card import write_card
from d2v_plugin.exporting.hugging_face.classes import export_classes
from d2v_plugin.exporting.hugging_face.inputs import write_inputs
from d2v_plugin.exporting.hugging_face.settings import describe_classes, describe_head, describe_model
from d2v_plugin.models.data2vec2.model import Data2VecModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHIPPED: Final = Path(__file__).parent / "shipped"
_CONFIGURATION, _MODELING, _PROCESSING = (f"{kind}_data2vec2.py" for kind in ("configuration", "modeling", "processing"))
_INPUT_NAMES: Final = {Modality.AUDIO: "input_values", Modality.IMAGE: "pixel_values", Modality.TEXT: "input_ids"}
_HEAD: Final = "criterion.head."


def export_hugging_face(exportable: Exportable, folder: Path) -> Differences:
    """Write a folder for ``from_pretrained``, and compare what it loads.

    :raises CheckpointError: the head is none that the folder's classes have, or transformers is not installed.
    """
    require_transformers()
    if not isinstance(exportable.model, Data2VecModel):
        return export_classes(exportable, folder)
    from d2v_plugin.exporting.hugging_face.shipped import modeling_data2vec2 as classes
    from d2v_plugin.exporting.hugging_face.shipped.configuration_data2vec2 import Data2Vec2Config

    name, head = describe_head(exportable)
    kind: type[PreTrainedModel] = getattr(classes, name)
    auto_map = describe_classes(exportable.model.config)
    config = Data2Vec2Config(
        **describe_model(exportable.model.config), **head, auto_map=auto_map, architectures=[name], dtype="float32"
    )
    folder.mkdir()
    _build(kind, config, exportable.model).save_pretrained(folder)
    has_speech = Modality.AUDIO in exportable.model.config.frontends
    for file in (_CONFIGURATION, _MODELING, *([_PROCESSING] if has_speech else [])):
        shutil.copyfile(_SHIPPED / file, folder / file)
    write_inputs(exportable, folder, speech=_SPEECH)
    write_card(exportable, folder, kind=name)

    return _compare(exportable, kind.from_pretrained(folder))


_SPEECH: Final = {
    "feature_extractor_type": "Data2Vec2FeatureExtractor",
    "processor_class": "Data2Vec2Processor",
    "auto_map": {
        "AutoFeatureExtractor": "processing_data2vec2.Data2Vec2FeatureExtractor",
        "AutoProcessor": "processing_data2vec2.Data2Vec2Processor",
    },
}


def require_transformers() -> None:
    """Import transformers, and keep it from printing whole configurations.

    :raises CheckpointError: it is not installed.
    """
    try:
        from transformers.utils import logging
    except ImportError as ex:
        raise CheckpointError("The format `huggingface` needs transformers: `pip install 'transformers>=4.57'`.") from ex
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _build(kind: Any, config: Any, model: Data2VecModel) -> PreTrainedModel:
    """The model of a configuration, with our weights."""
    with torch.device("meta"):
        built: PreTrainedModel = kind(config)
    ours = model.state_dict()
    weights = {}
    for key in built.state_dict():
        name = key.removeprefix("data2vec2.")
        weights[key] = ours[name.replace("head.", _HEAD, 1) if name.startswith("head.") else name].detach()
    built.load_state_dict(weights, assign=True)

    return built


@torch.no_grad()
def _compare(exportable: Exportable, model: PreTrainedModel) -> Differences:
    """The largest differences over all modalities."""
    found: dict[str, float] = {}
    model.train(False)
    encoder = getattr(model, "data2vec2", model)
    for modality in exportable.model.config.frontends:
        batch = draw_batch(exportable.model, modality)
        expected = compute_outputs(exportable, batch)
        used = encoder if expected.head is None else model
        output = used(**name_inputs(batch), output_hidden_states=True)
        logits = getattr(output, "logits", None)
        if logits is not None and model.config.problem_type == "multi_label_classification":
            logits = logits.sigmoid()
        differences = compare_outputs(expected, list(output.hidden_states[1:]), logits)
        found = {what: max(found.get(what, 0.0), value) for what, value in differences.items()} | {
            what: value for what, value in found.items() if what not in differences
        }

    return found


def name_inputs(batch: Batch) -> dict[str, Any]:
    """A batch as arguments of models of transformers."""
    named = {_INPUT_NAMES[batch.modality]: batch.inputs}

    return named if batch.padding_mask is None else {**named, "attention_mask": (~batch.padding_mask).long()}
