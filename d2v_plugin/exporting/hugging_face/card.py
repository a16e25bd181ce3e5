"""The model card: what a folder holds, where it is from, and how it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from d2v_plugin.core.batch import Modality
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.weights.run_folder import RunFolder, find_checkpoints, find_step

_PIPELINES: Final = {
    "Data2Vec2ForCTC": "automatic-speech-recognition",
    "Data2Vec2ForAudioClassification": "audio-classification",
    "Data2Vec2ForImageClassification": "image-classification",
    "Data2Vec2ForSequenceClassification": "text-classification",
}
_READ: Final = {
    Modality.AUDIO: ("AutoFeatureExtractor", "waveform, sampling_rate={rate}", "a waveform (T,) at {rate:,} samples per second"),
    Modality.IMAGE: ("AutoImageProcessor", "picture", "a picture of Pillow"),
    Modality.TEXT: ("AutoTokenizer", '"A sentence."', ""),
}


def write_card(exportable: Exportable, folder: Path, *, kind: str) -> None:
    """Write ``README.md``; the licence is for whoever publishes the model to fill in."""
    lines = ["---", *_describe_metadata(exportable, kind), "---", "", f"# {exportable.name}", ""]
    lines += [*_describe_model(exportable), "", "## Use", "", *_describe_use(exportable, kind)]
    if scores := _read_scores(exportable):
        lines += ["", "## Scores", "", "Measured by the training run.", "", *scores]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _describe_metadata(exportable: Exportable, kind: str) -> Iterator[str]:
    yield "license: unknown  # say which one you give, and what that of the training data allows"
    yield "library_name: transformers"
    yield f"pipeline_tag: {_PIPELINES.get(kind, 'feature-extraction')}"
    yield "tags:"
    yield "- data2vec2"
    for modality in exportable.model.config.frontends:
        yield f"- {modality.value}"


def _describe_model(exportable: Exportable) -> Iterator[str]:
    config, criterion, labels = exportable.model.config, exportable.criterion, exportable.labels
    modalities = ", ".join(modality.value for modality in config.frontends)
    num_parameters = sum(p.numel() for name, p in exportable.model.named_parameters() if ".decoder." not in name)
    yield (
        f"data2vec 2.0 ([arXiv 2212.07525](https://arxiv.org/abs/2212.07525)) for {modalities}: {config.depth} shared blocks of "
        f"width {config.dim}, {num_parameters:,} parameters, exported by d2v_plugin from the {exportable.weights}'s weights."
    )
    if criterion is not None:
        what = "a number" if labels is None else f"{len(labels)} outputs"
        yield f"Fine-tuned by `{_section(exportable, 'criterion')}` (`{type(criterion).__name__}`): {what}."
    if exportable.provenance is not None:
        step = find_step(exportable.path)
        update = "" if step is None else f", update {step.name.removeprefix('step_')}"
        yield f"Trained by the task `{_section(exportable, 'task')}`{_describe_dataset(exportable)}{update}."


def _section(exportable: Exportable, name: str) -> str:
    assert exportable.provenance is not None
    return str((exportable.provenance.sections.get(name) or {}).get("name"))


def _describe_dataset(exportable: Exportable) -> str:
    """The names of the dataset's folders; where they lie is nobody's business."""
    assert exportable.provenance is not None
    data = (exportable.provenance.sections.get("dataset") or {}).get("config_overrides") or {}
    paths = [part["path"] for part in (data, *data.values()) if isinstance(part, dict) and part.get("path")]
    names = ", ".join(f"`{Path(path).name}`" for path in paths)

    return f" on {names}" if names else ""


def _describe_use(exportable: Exportable, kind: str) -> Iterator[str]:
    modality = exportable.modality
    rate = _sample_rate(exportable)
    reader, inputs, comment = (text.replace("{rate}", str(rate)).replace("{rate:,}", f"{rate:,}") for text in _READ[modality])
    model = {"Data2Vec2Model": "AutoModel"}.get(kind, kind.replace("Data2Vec2", "AutoModel"))
    subfolder = "" if len(exportable.model.config.frontends) == 1 else f', subfolder="{modality.value}"'
    yield from ("```python", f"from transformers import {reader}, {model}", "")
    yield f'model = {model}.from_pretrained("FOLDER", trust_remote_code=True)'
    yield f'reader = {reader}.from_pretrained("FOLDER"{subfolder}, trust_remote_code=True)'
    yield f'inputs = reader({inputs}, return_tensors="pt")' + (f"  # {comment}" if comment else "")
    yield "outputs = model(**inputs, output_hidden_states=True)"
    if kind == "Data2Vec2ForCTC":
        yield "symbols = outputs.logits.argmax(dim=-1)  # number 0 is the blank; AutoTokenizer.decode gives the transcript"
    elif kind != "Data2Vec2Model":
        yield "outputs.logits  # model.config.id2label names the outputs"
    else:
        yield "outputs.last_hidden_state  # (N, tokens, width)"
    yield from ("```", "")
    yield "The code of the model is in this folder, hence `trust_remote_code`; it needs torch and transformers alone."
    yield "`hidden_states` are the input of the shared blocks and the output of each; CLS tokens come first."
    if modality is Modality.IMAGE:
        yield (
            "Pictures are resized and cropped as in training; where they are not square, the longer side may differ by a pixel. "
            "Transparent ones should be laid on white before."
        )


def _sample_rate(exportable: Exportable) -> int:
    config = None if exportable.task is None else exportable.task.config
    return getattr(getattr(config, "audio", None), "sample_rate", 16_000)


def _read_scores(exportable: Exportable) -> list[str]:
    """A table of what the run's summary says of its scores."""
    checkpoints = find_checkpoints(exportable.path)
    path = None if checkpoints is None else RunFolder(checkpoints.parent).summary
    if path is None or not path.is_file():
        return []
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = {**summary.get("accuracies", {}), **summary.get("scores", {})}
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        table = [[what, *(f"{row[name]:.4f}" if name in row else "" for name in names)] for what, row in rows.items()]
    except (OSError, ValueError, TypeError, AttributeError):
        return []
    if not table:
        return []

    return [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}", *(f"| {' | '.join(row)} |" for row in table)]
