"""Heads of Hugging Face's data2vec 1.0 classes come with their model: equal logits, labels, and how inputs are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForAudioFrameClassification,
    Data2VecAudioForCTC,
    Data2VecAudioForSequenceClassification,
    Data2VecAudioForXVector,
    Data2VecTextConfig,
    Data2VecTextForMaskedLM,
    Data2VecTextForMultipleChoice,
    Data2VecTextForQuestionAnswering,
    Data2VecTextForSequenceClassification,
    Data2VecTextForTokenClassification,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Data2VecVisionForSemanticSegmentation,
    PreTrainedModel,
    RobertaTokenizerFast,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.criteria.supervised.ctc import CtcConfig, CtcCriterion
from d2v_plugin.data.tokenizers import open_tokenizer
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.weights.convert.hugging_face import convert_hugging_face
from d2v_plugin.weights.directory import write_directory
from d2v_plugin.weights.sources import find_provenance

SIZE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
PAD = 1
CRITERIA: dict[str, tuple[Any, Any]] = {
    "ctc": (CtcCriterion, CtcConfig),
    "classification": (ClassificationCriterion, ClassificationConfig),
}


def audio(**changes: Any) -> Data2VecAudioConfig:
    return Data2VecAudioConfig(**SIZE | {"conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 4} | changes)


def text(**changes: Any) -> Data2VecTextConfig:
    return Data2VecTextConfig(**SIZE, vocab_size=50, max_position_embeddings=40, **changes)


def vision(**changes: Any) -> Data2VecVisionConfig:
    return Data2VecVisionConfig(**SIZE, image_size=16, patch_size=8, **changes)


def save(model: PreTrainedModel, folder: Path) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)

    return model.eval()


def write_processor(folder: Path, symbols: dict[str, int], **settings: Any) -> Wav2Vec2Processor:
    (folder / "symbols.json").write_text(json.dumps(symbols))
    special: dict[str, Any] = {"pad_token": "<pad>", "unk_token": "<pad>", "bos_token": None, "eos_token": None}
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "symbols.json"), **special | settings)
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True), tokenizer)
    processor.save_pretrained(folder)

    return processor


def load_here(folder: Path) -> tuple[EncoderModel, SupervisedCriterion[Any], dict[str, Any]]:
    """Convert, write, read: the model, its head and the sections."""
    content = convert_hugging_face(folder)
    content.config.original_padding = True
    write_directory(folder / "ours", content)
    provenance = find_provenance(folder / "ours")
    assert provenance is not None
    section = provenance.sections["criterion"]
    kind, settings = CRITERIA[section["name"]]
    criterion = kind(settings(**section["config"]))
    model = load_trained(folder / "ours", criterion, labels=provenance.labels, device=torch.device("cpu"))

    return model, criterion, dict(provenance.sections)


def draw_batch(model: EncoderModel) -> Batch:
    """Inputs with padding."""
    torch.manual_seed(1)
    (modality,) = model.config.frontends
    if modality is Modality.IMAGE:
        return Batch(modality, torch.randn(2, 3, 16, 16), torch.arange(2))
    if modality is Modality.TEXT:
        tokens = torch.randint(4, 49, (2, 12))
        tokens[1, 7:] = PAD
        return Batch(modality, tokens, torch.arange(2), tokens.eq(PAD))
    padding_mask = torch.zeros(2, 6000, dtype=torch.bool)
    padding_mask[1, 4000:] = True
    return Batch(modality, torch.randn(2, 6000).masked_fill(padding_mask, 0.0), torch.arange(2), padding_mask)


def compute_theirs(source: Any, batch: Batch) -> Tensor:
    inputs = {} if batch.padding_mask is None else {"attention_mask": (~batch.padding_mask).long()}
    return source(batch.inputs, **inputs).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "source",
    [
        Data2VecAudioForSequenceClassification(audio(classifier_proj_size=12, **NAMES)),
        Data2VecTextForSequenceClassification(text(classifier_dropout=0.3, **NAMES)),
        Data2VecTextForSequenceClassification(text(num_labels=1)),
        Data2VecVisionForImageClassification(vision(layer_norm_eps=1e-3, **NAMES)),
        Data2VecVisionForImageClassification(vision(use_mean_pooling=False, use_relative_position_bias=True, **NAMES)),
    ],
    ids=["recordings", "sentences", "number", "mean", "cls"],
)
@torch.no_grad()
def test_logits_are_equal(source: Any, tmp_path: Path) -> None:
    save(source, tmp_path)

    model, criterion, sections = load_here(tmp_path)

    batch = draw_batch(model)
    logits = criterion.apply_head(model.extract_features(batch.inputs, batch.padding_mask))
    torch.testing.assert_close(logits, compute_theirs(source, batch), atol=1e-5, rtol=1e-5)
    assert sections["task"]["name"] == f"{batch.modality.value}_classification"
    if source.config.num_labels == 3:
        assert criterion.labels is not None and list(criterion.labels.names) == ["cat", "dog", "owl"]


@torch.no_grad()
def test_a_transcriber_has_its_blank_first_and_equal_transcripts(tmp_path: Path) -> None:
    source = save(Data2VecAudioForCTC(audio(vocab_size=5, pad_token_id=2)), tmp_path)
    processor = write_processor(
        tmp_path, {"A": 0, "#": 1, "<pad>": 2, "B": 3, "'": 4}, word_delimiter_token="#", do_lower_case=True
    )

    model, criterion, sections = load_here(tmp_path)

    assert criterion.labels is not None and list(criterion.labels.names) == ["<blank>", "a", "|", "b", "'"]
    assert sections["task"] == {
        "name": "speech_recognition",
        "config": {"audio": {"sample_rate": 16_000, "normalize": False}},
    }
    batch = draw_batch(model)
    features = model.extract_features(batch.inputs, batch.padding_mask)
    logits, theirs = criterion.apply_head(features), compute_theirs(source, batch)
    assert features.padding_mask is not None
    valid = ~features.padding_mask
    torch.testing.assert_close(logits[valid], theirs[..., [2, 0, 1, 3, 4]][valid], atol=1e-5, rtol=1e-5)
    transcripts = [answer.hypothesis for answer in criterion.answer(logits, features.padding_mask)]
    lengths = valid.sum(dim=1)
    assert transcripts == [
        " ".join(processor.decode(row[:length].argmax(dim=-1)).split()) for row, length in zip(theirs, lengths, strict=True)
    ]


def test_pictures_are_read_as_the_processor_says(tmp_path: Path) -> None:
    save(Data2VecVisionForImageClassification(vision(**NAMES)), tmp_path)
    settings = {"image_processor_type": "BeitImageProcessor", "size": 20, "crop_size": 16, "resample": 2}
    settings |= {"do_resize": True, "do_center_crop": True, "do_rescale": False, "do_normalize": True}
    settings |= {"image_mean": [51.0, 102.0, 153.0], "image_std": [255.0, 25.5, 51.0]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))

    content = convert_hugging_face(tmp_path)

    assert content.provenance is not None
    assert content.provenance.sections["task"]["config"] == {
        "image": {"size": 16, "eval_resize": 1.25, "mean": [0.2, 0.4, 0.6], "std": [1.0, 0.1, 0.2]}
    }
    squeezed, resized = content.info["source"]["notes"]
    assert "squeezed there" in squeezed and "another method" in resized

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"crop_size": 15}))
    with pytest.raises(CheckpointError, match=r"makes pictures of .*15.*, but the model takes 16 x 16"):
        convert_hugging_face(tmp_path)


VOCABULARY = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6, "Ġ": 7, "<mask>": 8}


@pytest.mark.parametrize("is_one_file", [False, True])
def test_the_vocabulary_of_sentences_comes_along(is_one_file: bool, tmp_path: Path) -> None:
    save(Data2VecTextForSequenceClassification(text(**NAMES)), tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = RobertaTokenizerFast.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if is_one_file:  # as version 5 of transformers writes it
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / name).unlink()
    (tmp_path / "scratch").mkdir()

    write_directory(tmp_path / "ours", convert_hugging_face(tmp_path, scratch=tmp_path / "scratch"))

    (ids,) = open_tokenizer(tmp_path / "ours").encode_lines(["abba"])
    assert ids.tolist() == tokenizer("abba", add_special_tokens=False)["input_ids"] == [6, 5, 4]


@pytest.mark.parametrize(
    "source",
    [
        Data2VecAudioForAudioFrameClassification(audio()),
        Data2VecAudioForXVector(audio(tdnn_dim=[8, 8, 8, 8, 8])),
        Data2VecTextForMaskedLM(text()),
        Data2VecTextForTokenClassification(text()),
        Data2VecTextForQuestionAnswering(text()),
        Data2VecTextForMultipleChoice(text()),
        Data2VecVisionForSemanticSegmentation(vision(out_indices=[0, 1, 1, 1])),
    ],
    ids=lambda source: type(source).__name__,
)
def test_other_heads_are_refused_by_name_and_can_be_left_out(source: Any, tmp_path: Path) -> None:
    save(source, tmp_path)

    with pytest.raises(
        CheckpointError, match=f"a {type(source).__name__}, whose head no criterion here has; --no-head"
    ) as caught:
        convert_hugging_face(tmp_path)
    assert "\n" not in str(caught.value)
    assert convert_hugging_face(tmp_path, head=False).head is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Data2VecAudioForSequenceClassification(audio(use_weighted_layer_sum=True)), "`use_weighted_layer_sum` must be False"),
        (
            Data2VecTextForSequenceClassification(text(problem_type="multi_label_classification")),
            "`problem_type` must be single_label_classification, but is multi_label_classification",
        ),
        (Data2VecVisionForImageClassification(vision(num_labels=1)), "`id2label` must name two classes at least"),
        (Data2VecAudioForCTC(audio(vocab_size=5)), "has no vocab.json, which names the symbols of the head; --no-head"),
    ],
    ids=["layers", "tags", "one", "symbols"],
)
def test_what_no_criterion_computes_is_refused(source: Any, message: str, tmp_path: Path) -> None:
    save(source, tmp_path)

    with pytest.raises(CheckpointError, match=message):
        convert_hugging_face(tmp_path)


@pytest.mark.parametrize(
    ("symbols", "settings", "message"),
    [
        ({"<pad>": 0, "a": 1}, {}, "names 2 of the head's 3 symbols"),
        ({"a": 0, "<pad>": 1, "|": 2}, {}, r"the blank is number 0 in config.json \(`pad_token_id`\), but 1 in the tokenizer"),
        ({"<pad>": 0, "a": 1, "A": 2}, {"do_lower_case": True}, "two symbols are the same"),
    ],
)
def test_symbols_that_do_not_fit_are_an_error(symbols: Any, settings: Any, message: str, tmp_path: Path) -> None:
    save(Data2VecAudioForCTC(audio(vocab_size=3, pad_token_id=0)), tmp_path)
    write_processor(tmp_path, symbols, **settings)

    with pytest.raises(CheckpointError, match=message):
        convert_hugging_face(tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda weights: weights.pop("classifier.bias"), "missing:\n    classifier.bias"),
        (
            lambda weights: weights.pop("data2vec_vision.pooler.layernorm.bias"),
            "missing:\n    data2vec_vision.pooler.layernorm.bias",
        ),
        (lambda weights: weights.update({"classifier.scale": torch.ones(3)}), "unexpected:\n    classifier.scale"),
        (lambda weights: weights.update({"other.weight": torch.ones(3)}), "unexpected:\n    other.weight"),
        (lambda weights: weights.update({"classifier.bias": torch.ones(4)}), "classifier.bias: not (3,)"),
    ],
    ids=["missing", "pooler", "unexpected", "foreign", "reshaped"],
)
def test_weights_of_a_head_that_transformers_would_draw_are_an_error(
    change: Callable[[dict[str, Tensor]], object], line: str, tmp_path: Path
) -> None:
    save(Data2VecVisionForImageClassification(vision(**NAMES)), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=re.escape(line)):
        convert_hugging_face(tmp_path)
