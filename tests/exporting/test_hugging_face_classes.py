"""data2vec 1.0 leaves for Hugging Face's own classes with its head, and comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import SENTENCE_HEAD, SYMBOLS, create_container, read_trained

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.exporting.comparison import compute_outputs, draw_batch, largest_difference
from d2v_plugin.exporting.exportable import Exportable, read_exportable
from d2v_plugin.exporting.hugging_face.export import export_hugging_face
from d2v_plugin.weights.convert.hugging_face import convert_hugging_face
from d2v_plugin.weights.directory import write_directory

BOOKS = Path(__file__).parents[2] / "manifests" / "books"


def original_padding(config: Any) -> Any:
    return replace(config, original_padding=True)


def without_final_norm(config: Any) -> Any:
    return replace(config, image=replace(config.image, final_norm=False))


IMAGE = {"image": {"size": 16, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "eval_resize": 1.25}}
AUDIO: dict[str, Any] = {"change": original_padding, "task": {"audio": {"normalize": False}}}
CASES: list[Any] = [
    pytest.param("Data2VecAudioForCTC", ("audio_tiny", "ctc"), {"labels": SYMBOLS, **AUDIO}, id="ctc"),
    pytest.param(
        "Data2VecAudioForSequenceClassification", ("audio_tiny", "classification"), {"norm": False, **AUDIO}, id="recordings"
    ),
    pytest.param("Data2VecTextForSequenceClassification", ("text_tiny", "classification"), SENTENCE_HEAD, id="sentences"),
    pytest.param(
        "Data2VecTextForSequenceClassification",
        ("text_tiny", "classification"),
        {**SENTENCE_HEAD, "labels": None, "scores": ["pearson"]},
        id="numbers",
    ),
    pytest.param(
        "Data2VecVisionForImageClassification",
        ("vision_tiny", "classification"),
        {"change": without_final_norm, "task": IMAGE},
        id="mean",
    ),
    pytest.param(
        "Data2VecVisionForImageClassification",
        ("vision_tiny", "classification"),
        {"pooling": "cls", "norm": False, "task": IMAGE},
        id="cls",
    ),
    pytest.param("Data2VecAudioModel", ("audio_tiny",), {}, id="speech-encoder"),
    pytest.param("Data2VecTextModel", ("text_tiny",), {}, id="text-encoder"),
    pytest.param("Data2VecVisionModel", ("vision_tiny",), {}, id="image-encoder"),
]


@torch.no_grad()
def compute_logits(exportable: Exportable) -> Any:
    return compute_outputs(exportable, draw_batch(exportable.model, exportable.modality))


@pytest.mark.parametrize(("kind", "model", "settings"), CASES)
def test_heads_are_equal_there_and_when_they_come_back(kind: str, model: Any, settings: Any, tmp_path: Path) -> None:
    exportable = read_trained(tmp_path / "trained", "data2vec1", *model, **settings)

    differences = export_hugging_face(exportable, tmp_path / "out")

    assert set(differences) == {"blocks", "features" if exportable.criterion is None else "head"}
    assert max(differences.values()) <= 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [kind]

    content = convert_hugging_face(tmp_path / "out")
    content.config.original_padding = exportable.model.config.original_padding
    write_directory(tmp_path / "back", content)
    back = read_exportable(tmp_path / "back", create_container())
    ours, theirs = compute_logits(exportable), compute_logits(back)
    if exportable.criterion is None:
        assert back.criterion is None
        assert largest_difference(ours.blocks[-1][ours.valid], theirs.blocks[-1][ours.valid]) <= 1e-5
        return
    assert back.labels == exportable.labels
    if ours.head.dim() == 3:
        ours, theirs = ours.head[ours.valid], theirs.head[ours.valid]
    else:
        ours, theirs = ours.head, theirs.head
    assert largest_difference(ours, theirs) <= 1e-5
    if exportable.modality.value != "text":
        reading = exportable.modality.value
        assert getattr(back.task.config, reading) == getattr(exportable.task.config, reading)  # type: ignore[union-attr]


def test_another_architecture_is_refused_in_a_line(tmp_path: Path) -> None:
    exportable = read_trained(tmp_path / "trained", "data2vec1", "text_tiny")
    exportable.model.register_parameter("register_tokens", torch.nn.Parameter(torch.zeros(1)))

    with pytest.raises(CheckpointError, match=r"Data2VecTextModel is another architecture .* has register_tokens\.") as caught:
        export_hugging_face(exportable, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_transcripts_are_those_of_their_processor(tmp_path: Path) -> None:
    exportable = read_trained(tmp_path / "trained", "data2vec1", "audio_tiny", "ctc", labels=SYMBOLS)
    export_hugging_face(exportable, tmp_path / "out")

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    frames = torch.tensor([[2, 2, 0, 2, 1, 0, 3, 4, 4]])
    assert processor.batch_decode(frames) == ["aa bc"]
    assert processor.feature_extractor.do_normalize and processor.feature_extractor.return_attention_mask


def test_speech_says_that_padding_changes_it_there(tmp_path: Path) -> None:
    exportable = read_trained(tmp_path / "trained", "data2vec1", "audio_tiny", "classification", norm=False)

    differences = export_hugging_face(exportable, tmp_path / "out")

    assert max(differences.values()) <= 1e-5
    assert "in a batch, padding changes" in (tmp_path / "out" / "README.md").read_text()


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    def with_vocabulary(config: Any) -> Any:
        size = json.loads((BOOKS / "vocabulary.json").read_text())["size"]
        return replace(config, text=replace(config.text, vocab_size=size))

    dataset = {"path": str(BOOKS), "vocabulary": str(BOOKS)}
    exportable = read_trained(
        *(tmp_path / "trained", "data2vec1", "text_tiny", "classification"),
        dataset=dataset,
        change=with_vocabulary,
        **SENTENCE_HEAD,
    )
    export_hugging_face(replace(exportable, files=sorted(BOOKS.glob("*.model"))), tmp_path / "out")

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("a word")["input_ids"]
    assert ids[0] == 0 and ids[-1] == 2 and len(ids) > 2


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (("audio_tiny", "classification"), {}, "Data2VecAudioForSequenceClassification cannot compute this head: `norm` is true"),
        (("audio_tiny", "classification"), {"norm": False, "hidden": True}, "`hidden` is true"),
        (("audio_tiny", "audio_tagging"), {}, "has the head of the criterion `audio_tagging`"),
        (("text_tiny", "classification"), {**SENTENCE_HEAD, "pooling": "mean"}, "`pooling` is mean, where it has cls"),
        (("text_tiny", "classification"), {**SENTENCE_HEAD, "hidden": False}, "`hidden` is false"),
        (("vision_tiny", "classification"), {}, "`image.final_norm` True"),
        (("vision_tiny", "classification"), {"change": without_final_norm, "norm_eps": 1e-5}, "`norm_eps` is 1e-05"),
    ],
)
def test_what_their_classes_lack_is_refused_by_name(model: Any, settings: Any, message: str, tmp_path: Path) -> None:
    exportable = read_trained(tmp_path / "trained", "data2vec1", *model, **settings)

    with pytest.raises(CheckpointError, match=message) as caught:
        export_hugging_face(exportable, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
