"""ONNX and archives of ``torch.export`` compute what our own model computes, for any number of samples and any length."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from small_models import CLASSES, SENTENCE_HEAD, SYMBOLS, change, create_container, read_trained, write_trained
from torch import Tensor, nn

import d2v_plugin.exporting.packages
from d2v_plugin.core.batch import Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.exporting.export import export_model
from d2v_plugin.exporting.onnx import export_onnx
from d2v_plugin.exporting.program import Program, draw_example
from d2v_plugin.exporting.torch_export import export_archive
from d2v_plugin.models.base import NO_TORCHSCRIPT

SPEECH = ["features", "frame_padding_mask", "logits"]
TAGS = ["features", "frame_padding_mask", "probabilities"]
PADDED = {"pooling": "cls", "change": change("spectrogram", pad_frames=64)}
ARCHIVES: list[Any] = [
    pytest.param(("data2vec", "audio_tiny", "audio_tagging"), {"change": change("audio", num_channels=3)}, TAGS, id="tags"),
    pytest.param(("data2vec1", "text_tiny", "classification"), SENTENCE_HEAD, ["features", "logits"], id="sentences"),
    pytest.param(("data2vec1", "vision_tiny"), {}, ["features"], id="pictures"),
    pytest.param(("data2vec", "spectrogram_tiny", "audio_tagging"), PADDED, TAGS, id="padded spectrograms"),
]
PAGE = Path(__file__).parents[2].joinpath("recipes", "exporting.md").read_text(encoding="utf-8")
GRAPHS: list[Any] = [
    pytest.param(("data2vec1", "audio_tiny", "ctc"), {"labels": SYMBOLS}, SPEECH, id="speech"),
    pytest.param(("data2vec", "text_tiny"), {}, ["features"], id="text"),
    pytest.param(("data2vec", "spectrogram_tiny"), {}, SPEECH[:2], id="spectrograms"),
    pytest.param(("data2vec", "image_tiny", "classification"), {}, ["features", "logits"], id="pictures"),
]


def run_example(name: str, folder: str, place: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run what the page shows, on an export that lies elsewhere."""
    found = re.findall(rf"<!-- code: {re.escape(name)} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1 and f'"{folder}' in found[0]
    exec(found[0].replace(f'"{folder}', f'"{place}'), names)

    return names


def draw_inputs(program: Program, rows: int) -> dict[str, torch.Tensor]:
    """Other inputs than those of the export and of the comparison at its end."""
    inputs, padding_mask = draw_example(program)
    inputs = torch.cat([inputs, inputs[:1]])[:1].repeat(rows, *[1] * (inputs.dim() - 1))
    if padding_mask is None:
        return {"inputs": inputs + torch.randn_like(inputs)}
    inputs = torch.cat([inputs, inputs], dim=1)[:, : inputs.size(1) + 7]
    padding_mask = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    padding_mask[0, inputs.size(1) - 5 :] = rows > 1
    return {"inputs": inputs, "padding_mask": padding_mask}


def leave_out_padding(x: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """The valid tokens of texts: ours has zeros at the others, a program that is the same for all batches whatever comes out."""
    padding_mask = inputs.get("padding_mask")

    return x[~padding_mask] if padding_mask is not None and x.shape[:2] == padding_mask.shape else x


@pytest.mark.parametrize(("model", "settings", "outputs"), ARCHIVES)
@torch.no_grad()
def test_archives_are_equal_at_other_sizes(model: Any, settings: Any, outputs: list[str], tmp_path: Path) -> None:
    exportable = read_trained(tmp_path / "trained", *model, **settings)

    differences = export_archive(exportable, tmp_path / "out")

    assert list(differences) == outputs and max(differences.values()) <= 1e-5
    extra = {"metadata.json": ""}
    loaded = torch.export.load(tmp_path / "out" / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["outputs"] == outputs
    program = Program(exportable)
    for rows in (1, 4):
        inputs = draw_inputs(program, rows)
        for ours, theirs in zip(program(*inputs.values()), loaded(*inputs.values()), strict=True):
            torch.testing.assert_close(leave_out_padding(theirs, inputs), leave_out_padding(ours, inputs), atol=1e-5, rtol=1e-5)
    if outputs == ["features"]:
        names = run_example("torch.export", "out/program", tmp_path / "out", {"images": torch.randn(3, 3, 16, 16)})
        assert names["features"].shape == (3, 16, 16)


@pytest.mark.parametrize(("model", "settings", "outputs"), GRAPHS)
@torch.no_grad()
def test_onnx_is_equal_at_other_sizes(model: Any, settings: Any, outputs: list[str], tmp_path: Path) -> None:
    exportable = read_trained(tmp_path / "trained", *model, **settings)

    differences = export_onnx(exportable, tmp_path / "out")

    assert list(differences) == outputs and max(differences.values()) <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    program = Program(exportable)
    assert [put.name for put in session.get_inputs()] == program.input_names
    for rows in (1, 4):
        inputs = draw_inputs(program, rows)
        found = session.run(outputs, {name: value.numpy() for name, value in inputs.items()})
        for ours, theirs in zip(program(*inputs.values()), found, strict=True):
            theirs, ours = (leave_out_padding(x, inputs) for x in (torch.from_numpy(theirs), ours))
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["modality"] == exportable.modality.value
    if exportable.labels is not None:
        assert json.loads(metadata["labels"]) == list(exportable.labels.names)
    if exportable.modality is Modality.IMAGE:
        names = run_example("onnx", "out/graph", tmp_path / "out", {"images": torch.randn(2, 3, 16, 16).numpy()})
        assert len(names["names"]) == 2 and set(names["names"]) <= set(CLASSES.names)


def test_what_serves_pretraining_alone_is_not_in_the_file(tmp_path: Path) -> None:
    exportable = read_trained(tmp_path / "trained", "data2vec", "image_tiny")
    assert any("decoder" in name for name in exportable.model.state_dict())

    assert not any("decoder" in name for name in Program(exportable).state_dict())


def test_how_inputs_are_read_is_in_the_file(tmp_path: Path) -> None:
    image = {"size": 16, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "eval_resize": 1.0}
    export_archive(
        read_trained(tmp_path / "trained", "data2vec1", "vision_tiny", "classification", task={"image": image}), tmp_path / "out"
    )

    content = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert (
        content["labels"] == ["cat", "dog", "owl"] and content["modality"] == "image" and content["criterion"] == "classification"
    )
    assert {name: content[name] for name in ("mean", "std", "eval_resize")} == {k: v for k, v in image.items() if k != "size"}


@pytest.mark.parametrize(
    ("model", "changed", "format", "message"),
    [
        ("spectrogram_tiny", {}, "huggingface", "takes waveforms alone, but .* sees spectrograms"),
        ("audio_tiny", change("audio", num_channels=3), "huggingface", "has `audio.num_channels` 3"),
        ("image_tiny", change("image", num_channels=1), "huggingface", "takes images of three channels"),
        ("image_tiny", change("image", image_size=(16, 32)), "timm", r"has square images and patches alone, .* \[16, 32\]"),
    ],
)
def test_shapes_that_a_format_lacks_are_one_line(model: str, changed: Any, format: str, message: str, tmp_path: Path) -> None:
    source = write_trained(tmp_path / "trained", "data2vec", model, change=changed or (lambda config: config))

    with pytest.raises(CheckpointError, match=f"`{format}` .*{message}.*; choose `torch_export` or `onnx`") as caught:
        export_model(source, tmp_path / "out", format=format, resolver=create_container())
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exportable = read_trained(tmp_path / "trained", "data2vec1", "vision_tiny")
    monkeypatch.setattr(d2v_plugin.exporting.packages, "find_spec", lambda name: None if name == "onnxruntime" else name)

    with pytest.raises(CheckpointError, match=r"`onnx` needs onnxruntime: `pip install onnxruntime`.*\.\[export\]") as caught:
        export_onnx(exportable, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.extract_features(images).x  # type: ignore[no-any-return, operator]


@pytest.mark.parametrize("model", [("data2vec", "image_tiny"), ("data2vec1", "vision_tiny")])
@pytest.mark.parametrize("use", ["trace", "script", "onnx"])
def test_torchscript_is_refused(model: Any, use: str, tmp_path: Path) -> None:
    wrapped, images = Wrapped(read_trained(tmp_path / "trained", *model).model), torch.zeros(1, 3, 16, 16)

    with pytest.raises(RuntimeError, match=re.escape(NO_TORCHSCRIPT)):
        if use == "trace":
            torch.jit.trace(wrapped, images)
        elif use == "script":
            torch.jit.script(wrapped)
        else:
            torch.onnx.export(wrapped, (images,), tmp_path / "model.onnx", dynamo=False)
