"""The rows of `python -m tools.benchmark peers`: the same work for this package and for Hugging Face's transformers.

Models have the size of the published base models and random weights. Where both sides have the same weights, what they compute is
compared. An update is forward and backward pass, clipping and AdamW, in training mode; blocks are not left out at random.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import fairseq2.recipe  # noqa: F401  # before fairseq2's other modules, which need it
import torch
from torch import Tensor, nn

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.lazy import LazyModule
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.baselines.mae import MaeConfig, MaeCriterion
from d2v_plugin.criteria.baselines.masked_lm import MaskedLMConfig, MaskedLMCriterion
from d2v_plugin.criteria.baselines.wav2vec2 import Wav2Vec2Config, Wav2Vec2Criterion
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.criteria.supervised.ctc import CtcConfig, CtcCriterion
from d2v_plugin.data.batches import Padded, pad
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.evaluation.checkpoint import attach_criterion
from d2v_plugin.masking.random_blocks import RandomMaskConfig, RandomMaskSampler
from d2v_plugin.masking.spans_and_beit import SpanMaskConfig, SpanMaskSampler
from d2v_plugin.models.data2vec1.archs import ARCHS as ARCHS1
from d2v_plugin.models.data2vec2.archs import ARCHS as ARCHS2
from d2v_plugin.models.families import AnyConfig, create_model
from d2v_plugin.training.malloc import keep_freed_memory
from tools.benchmark.peer_decoding import BEAM, LETTERS, decode_greedily, search_words
from tools.benchmark.peer_side import Setting, Side, Work

transformers = LazyModule("transformers")  # for their side alone

SAMPLE_RATE: Final = 16_000
SMALL: Final[dict[str, Any]] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_SPEECH: Final[dict[str, Any]] = {**SMALL, "conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 4}
SMALL_IMAGES: Final[dict[str, Any]] = {**SMALL, "image_size": 32, "patch_size": 4}
NO_CHANCE: Final[dict[str, Any]] = {"layerdrop": 0.0}
SPEECH, MIXED_SPEECH = (10.0,) * 4, (3.0, 5.0, 8.0, 12.0)
SENTENCES, MIXED_SENTENCES = (64,) * 32, tuple(6 + (53 * row) // 31 for row in range(32))


def pad_rows(rows: Sequence[Tensor], value: int = 0) -> Padded:
    arrays = [row.numpy() for row in rows]
    return pad(arrays, arrays[0].dtype.type, value=value)


def make_speech(seconds: Sequence[float], tiny: bool) -> list[Tensor]:
    return [torch.randn(round(length * SAMPLE_RATE / (10 if tiny else 1))) for length in seconds]


def make_texts(lengths: Sequence[int], tiny: bool) -> list[Tensor]:
    return [torch.randint(4, count_words(tiny) - 1, (length,)) for length in lengths]


def count_words(tiny: bool) -> int:
    return 500 if tiny else 50_265


def make_images(count: int, tiny: bool) -> Tensor:
    return torch.randn(count, 3, *((32, 32) if tiny else (224, 224)))


def update(model: nn.Module, compute: Callable[[], tuple[Tensor, int]]) -> Callable[[], None]:
    """An update of all that is trained; the loss is a sum over so many targets."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def run() -> None:
        loss, count = compute()
        (loss / count).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def train_ours(config: AnyConfig, criterion: Criterion[Any], labels: LabelSet | None, batch: Batch) -> Work:
    keep_freed_memory()
    model = create_model(config)
    attach_criterion(model, criterion, labels)
    model.requires_grad_(True)
    batch.to(torch.device("cpu"))

    def compute() -> tuple[Tensor, int]:
        output = model(batch, StepInfo(1, 1))
        return output.loss, output.num_targets

    return Work(update(model, compute))


def train_theirs(model: nn.Module, **inputs: Any) -> Work:
    return Work(update(model, lambda: (model(**inputs).loss, 1)))


def share_weights(side: Side, make: Callable[[], Any], folder: Path) -> Any:
    """Their model in evaluation, or ours with its weights."""
    if side == "theirs":
        theirs = make()
        theirs.save_pretrained(folder)
        return theirs.eval()
    from d2v_plugin.weights.convert.hugging_face import convert_hugging_face

    keep_freed_memory()
    content = convert_hugging_face(folder)
    model = create_model(content.config).eval()
    model.load_state_dict(content.student)
    return model


def extract_speech(seconds: Sequence[float]) -> Callable[[Side, bool, Path], Work]:
    def begin(side: Side, tiny: bool, folder: Path) -> Work:
        rows = make_speech(seconds, tiny)
        settings = {**NO_CHANCE, **(SMALL_SPEECH if tiny else {})}
        model = share_weights(side, lambda: transformers.Data2VecAudioModel(transformers.Data2VecAudioConfig(**settings)), folder)
        return compare_features(side, model, rows, 0)

    return begin


def extract_texts(lengths: Sequence[int]) -> Callable[[Side, bool, Path], Work]:
    def begin(side: Side, tiny: bool, folder: Path) -> Work:
        rows = make_texts(lengths, tiny)
        settings = {"vocab_size": count_words(tiny), "max_position_embeddings": 514, **(SMALL if tiny else {})}
        model = share_weights(side, lambda: transformers.Data2VecTextModel(transformers.Data2VecTextConfig(**settings)), folder)
        return compare_features(side, model, rows, 1)

    return begin


def compare_features(side: Side, model: Any, rows: Sequence[Tensor], value: int) -> Work:
    """Features of padded rows; they agree with what theirs says of each row alone."""
    x, mask, _ = pad_rows(rows, value)
    if side == "ours":

        def select() -> Tensor:
            found = model.extract_features(x, mask)
            rows: Tensor = found.x.flatten(0, 1) if found.padding_mask is None else found.x[~found.padding_mask]
            return rows

        return Work(lambda: model.extract_features(x, mask), True, select)
    attention_mask = None if mask is None else (~mask).long()

    return Work(
        lambda: model(x, attention_mask=attention_mask),
        True,
        lambda: torch.cat([model(row[None]).last_hidden_state[0] for row in rows]),
    )


def extract_images(side: Side, tiny: bool, folder: Path) -> Work:
    images = make_images(16, tiny)
    settings = {"use_shared_relative_position_bias": True, "layer_scale_init_value": 0.1, **(SMALL_IMAGES if tiny else {})}
    model = share_weights(side, lambda: transformers.Data2VecVisionModel(transformers.Data2VecVisionConfig(**settings)), folder)
    if side == "ours":
        return Work(lambda: model.extract_features(images), True, lambda: model.extract_features(images).x)
    return Work(lambda: model(images), True, lambda: model(images).last_hidden_state[:, 1:])


def tune_ctc(seconds: Sequence[float]) -> Callable[[Side, bool, Path], Work]:
    def begin(side: Side, tiny: bool, folder: Path) -> Work:
        rows = make_speech(seconds, tiny)
        counts = [max(2, round(12 * len(row) / SAMPLE_RATE)) for row in rows]
        symbols, *_ = pad_rows([torch.randint(1, len(LETTERS), (count,)) for count in counts], -100)
        x, mask, shortest = pad_rows(rows)
        if side == "ours":
            batch = Batch(Modality.AUDIO, x, torch.arange(len(x)), mask, shortest)
            batch.labels, batch.label_lengths = symbols.clamp_min(0), torch.tensor(counts)
            config = replace(ARCHS1["audio_tiny" if tiny else "audio_base"](), layer_drop=0.0)
            return train_ours(config.without_prediction(), CtcCriterion(CtcConfig()), LabelSet(LETTERS), batch)
        settings = {"feat_extract_norm": "layer", "vocab_size": len(LETTERS), "ctc_loss_reduction": "mean", **NO_CHANCE}
        model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**settings, **(SMALL_SPEECH if tiny else {})))
        return train_theirs(model, input_values=x, labels=symbols, attention_mask=None if mask is None else (~mask).long())

    return begin


def tune_images(side: Side, tiny: bool, folder: Path) -> Work:
    images, classes = make_images(8, tiny), torch.randint(10, (8,))
    if side == "ours":
        batch = Batch(Modality.IMAGE, images, torch.arange(8), labels=classes)
        config = ARCHS2["image_tiny" if tiny else "image_base"]().without_prediction()
        labels = LabelSet(list(string.digits))
        return train_ours(config, ClassificationCriterion(ClassificationConfig()), labels, batch)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=10, **(SMALL_IMAGES if tiny else {})))
    return train_theirs(model, pixel_values=images, labels=classes)


def tune_texts(lengths: Sequence[int]) -> Callable[[Side, bool, Path], Work]:
    def begin(side: Side, tiny: bool, folder: Path) -> Work:
        rows, classes = make_texts(lengths, tiny), torch.randint(2, (len(lengths),))
        x, mask, shortest = pad_rows(rows, 1)
        if side == "ours":
            batch = Batch(Modality.TEXT, x, torch.arange(len(x)), mask, shortest, classes)
            config = ARCHS1["text_tiny" if tiny else "text_base"]().without_prediction()
            assert config.text is not None
            config.text.vocab_size = count_words(tiny)
            criterion = ClassificationCriterion(ClassificationConfig(pooling="cls", hidden=True, norm=False, dropout=0.1))
            return train_ours(config, criterion, LabelSet(["no", "yes"]), batch)
        model = make_roberta("RobertaForSequenceClassification", tiny)
        return train_theirs(model, input_ids=x, labels=classes, attention_mask=None if mask is None else (~mask).long())

    return begin


def make_roberta(name: str, tiny: bool) -> Any:
    config = transformers.RobertaConfig(
        vocab_size=count_words(tiny), max_position_embeddings=514, type_vocab_size=1, **(SMALL if tiny else {})
    )
    return getattr(transformers, name)(config)


def pretrain_images(side: Side, tiny: bool, folder: Path) -> Work:
    images = make_images(8, tiny)
    if side == "ours":
        config = ARCHS2["image_tiny" if tiny else "image_base"]()
        criterion = MaeCriterion(MaeConfig(), RandomMaskSampler(RandomMaskConfig(ratio=0.75)))
        return train_ours(config, criterion, None, Batch(Modality.IMAGE, images, torch.arange(8)))
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(norm_pix_loss=True, **(SMALL_IMAGES if tiny else {})))
    return train_theirs(model, pixel_values=images)


def pretrain_speech(side: Side, tiny: bool, folder: Path) -> Work:
    x = torch.stack(make_speech((10.0, 10.0), tiny))
    if side == "ours":
        config = ARCHS2["audio_tiny" if tiny else "audio_base"]()
        criterion = Wav2Vec2Criterion(Wav2Vec2Config(), SpanMaskSampler(SpanMaskConfig(probability=0.65, length=10)))
        return train_ours(config, criterion, None, Batch(Modality.AUDIO, x, torch.arange(2)))
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

    model = transformers.Wav2Vec2ForPreTraining(
        transformers.Wav2Vec2Config(feat_extract_norm="layer", **NO_CHANCE, **(SMALL_SPEECH if tiny else {}))
    )
    shape = (2, int(model._get_feat_extract_output_lengths(x.size(1))))

    def compute() -> tuple[Tensor, int]:
        mask = _compute_mask_indices(shape, 0.65, 10)
        others = torch.from_numpy(_sample_negative_indices(shape, model.config.num_negatives, mask))
        return model(x, mask_time_indices=torch.from_numpy(mask), sampled_negative_indices=others).loss, int(mask.sum())

    return Work(update(model, compute))


def pretrain_texts(side: Side, tiny: bool, folder: Path) -> Work:
    x = torch.stack(make_texts((64 if tiny else 512,) * 2, tiny))
    if side == "ours":
        config = ARCHS2["text_tiny" if tiny else "text_base"]()
        assert config.text is not None
        config.text.vocab_size = count_words(tiny)
        criterion = MaskedLMCriterion(MaskedLMConfig(), RandomMaskSampler(RandomMaskConfig(ratio=0.15)))
        return train_ours(config, criterion, None, Batch(Modality.TEXT, x, torch.arange(2)))
    hidden = torch.rand(x.shape) < 0.15
    model, seen = make_roberta("RobertaForMaskedLM", tiny), x.masked_fill(hidden, count_words(tiny) - 1)
    return train_theirs(model, input_ids=seen, labels=x.masked_fill(~hidden, -100))


ROWS: Final[dict[str, tuple[str, Callable[[Side, bool, Path], Work]]]] = {
    "pretrain/image": ("pre-training, 8 images; MAE / ViTMAEForPreTraining", pretrain_images),
    "pretrain/audio": ("pre-training, 2 x 10 s; wav2vec 2.0 / Wav2Vec2ForPreTraining", pretrain_speech),
    "pretrain/text": ("pre-training, 2 x 512 tokens; masked LM / RobertaForMaskedLM", pretrain_texts),
    "features/image": ("features of 16 images; Data2VecVisionModel", extract_images),
    "features/audio": ("features of 4 x 10 s; Data2VecAudioModel", extract_speech(SPEECH)),
    "features/audio-mixed": ("features of 3, 5, 8 and 12 s; Data2VecAudioModel", extract_speech(MIXED_SPEECH)),
    "features/text": ("features of 32 x 64 tokens; Data2VecTextModel", extract_texts(SENTENCES)),
    "features/text-mixed": ("features of 32 sentences of 6 to 59 tokens; Data2VecTextModel", extract_texts(MIXED_SENTENCES)),
    "ctc": ("fine-tuning, CTC, 4 x 4 s; Wav2Vec2ForCTC", tune_ctc((4.0,) * 4)),
    "ctc-mixed": ("fine-tuning, CTC, 2, 3, 5 and 8 s; Wav2Vec2ForCTC", tune_ctc((2.0, 3.0, 5.0, 8.0))),
    "classes/image": ("fine-tuning, 8 images; ViTForImageClassification", tune_images),
    "classes/text": ("fine-tuning, 32 x 64 tokens; RobertaForSequenceClassification", tune_texts(SENTENCES)),
    "classes/text-mixed": (
        "fine-tuning, 32 sentences of 6 to 59 tokens; RobertaForSequenceClassification",
        tune_texts(MIXED_SENTENCES),
    ),
    "decoding/beam": (f"beam search ({BEAM}) with 20,000 words; flashlight alone", search_words),
    "decoding/greedy": ("greedy decoding of 8 x 360 frames; Wav2Vec2CTCTokenizer", decode_greedily),
}
"""What each row is, and how it begins: the side, whether models are tiny, and a folder that both sides share."""


def begin(setting: Setting) -> Work:
    return ROWS[setting.row][1](setting.side, setting.tiny, Path(setting.folder))
