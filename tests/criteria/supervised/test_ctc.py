"""CTC on recordings: losses, gradients and what is read from the output."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.criteria.supervised.ctc import CtcConfig, CtcCriterion
from d2v_plugin.criteria.supervised.feature_masks import FeatureMaskConfig
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.transcripts import BLANK
from d2v_plugin.models.data2vec1.audio import Data2VecAudioModel
from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.model import Data2VecModel

LABELS = LabelSet([BLANK, "|", "a", "b"])
STEP = StepInfo(number=1, seed=1)


@pytest.fixture(scope="module")
def model() -> Data2VecModel:
    torch.manual_seed(0)

    return Data2VecModel(ARCHS["audio_tiny"]())


def make_criterion(model: Data2VecModel | Data2VecAudioModel, **settings: object) -> CtcCriterion:
    torch.manual_seed(0)
    criterion = CtcCriterion(CtcConfig(**settings))  # type: ignore[arg-type]
    criterion.set_labels(LABELS)
    criterion.build(model)

    return criterion


def make_batch(lengths: list[int], symbols: list[list[int]]) -> Batch:
    torch.manual_seed(1)
    inputs = torch.randn(len(lengths), max(lengths))
    padding_mask = torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1)
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in symbols], batch_first=True)

    return Batch(
        Modality.AUDIO,
        inputs.masked_fill(padding_mask, 0.0),
        torch.arange(len(lengths)),
        padding_mask if padding_mask.any() else None,
        min(lengths) if padding_mask.any() else None,
        labels,
        torch.tensor([len(row) for row in symbols]),
    )


def sum_alignments(log_probs: Tensor, symbols: list[int]) -> float:
    """The definition: all paths that collapse to the symbols."""
    total = 0.0
    for path in product(range(log_probs.size(1)), repeat=log_probs.size(0)):
        kept = [symbol for i, symbol in enumerate(path) if symbol and (i == 0 or path[i - 1] != symbol)]
        if kept == symbols:
            total += math.exp(sum(float(log_probs[i, symbol]) for i, symbol in enumerate(path)))

    return -math.log(total)


def test_the_loss_is_that_of_all_alignments_summed_over_recordings(model: Data2VecModel) -> None:
    criterion = make_criterion(model.eval(), masking=None).eval()
    # 5 and 3 frames.
    batch = make_batch([1680, 1040], [[2, 3, 1], [2, 2]])
    with torch.no_grad():
        output = criterion(model, batch, STEP)
        log_probs, lengths = criterion.compute_log_probs(model, batch)

    assert lengths.tolist() == [5, 3] and output.num_targets == 2
    expected = sum_alignments(log_probs[0, :5], [2, 3, 1]) + sum_alignments(log_probs[1, :3], [2, 2])
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_padding_changes_neither_loss_nor_prediction(model: Data2VecModel) -> None:
    criterion = make_criterion(model.eval(), masking=None).eval()
    batch = make_batch([9000, 16_000], [[2, 1], [3, 1, 2, 1]])
    assert batch.labels is not None and batch.label_lengths is not None
    first = (batch.ids[:1], None, None, batch.labels[:1], batch.label_lengths[:1])
    with torch.no_grad():
        together = criterion.predict(model, batch)
        (single,) = criterion.predict(model, Batch(Modality.AUDIO, batch.inputs[:1, :9000], *first))

    assert together[0].loss == pytest.approx(single.loss, abs=1e-4)
    assert together[0].hypothesis == single.hypothesis
    assert [prediction.reference for prediction in together] == ["a", "b a"]


def test_an_alignment_that_is_impossible_is_not_hidden(model: Data2VecModel) -> None:
    """The task refuses such recordings; were one to get through, the run stops instead of learning nothing from it."""
    criterion = make_criterion(model.eval(), masking=None).eval()

    assert criterion(model, make_batch([720], [[2, 2, 2]]), STEP).loss.isinf()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_the_loss_finite_and_close(model: Data2VecModel, dtype: torch.dtype) -> None:
    criterion = make_criterion(model.eval(), masking=None).eval()
    batch = make_batch([16_000, 32_000], [[2, 3, 1], [3, 1]])
    expected = criterion(model, batch, STEP).loss.item()
    with torch.autocast("cpu", dtype=dtype):
        loss = criterion(model, batch, STEP).loss

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.03)


def test_the_encoder_is_frozen_for_the_first_updates_masked_or_not(model: Data2VecModel) -> None:
    batch = make_batch([16_000], [[2, 3]])
    for masking in (None, FeatureMaskConfig(channel_length=8)):
        criterion = make_criterion(model.train(), masking=masking, freeze_updates=2)
        for number, is_frozen in ((2, True), (3, False)):
            model.zero_grad()
            criterion.zero_grad()
            criterion(model, batch, StepInfo(number=number, seed=1)).loss.backward()
            grads = [parameter.grad for parameter in model.blocks.parameters()]
            assert all(grad is None for grad in grads) is is_frozen
            assert criterion.head.weight.grad is not None
    model.zero_grad()


@pytest.mark.parametrize("masking", [True, False])
def test_the_mask_embedding_of_1_0_is_trained_where_it_is_used(masking: bool) -> None:
    audio = AudioConfig(conv_layers=[(32, 10, 5), *[(32, 3, 2)] * 4, *[(32, 2, 2)] * 2], position_groups=8)
    model = Data2VecAudioModel(Data2Vec1ModelConfig(audio=audio, dim=32, ffn_dim=64, depth=1, num_heads=2), audio)
    criterion = make_criterion(model, masking=FeatureMaskConfig(channel_length=8) if masking else None)
    model.criterion = criterion
    model.requires_grad_(True)
    criterion(model, make_batch([16_000], [[2, 3]]), STEP).loss.backward()

    assert model.mask_emb.requires_grad is masking
    assert (model.mask_emb.grad is not None) is masking
    # Data parallelism waits for the gradient of each parameter that is trained.
    assert not [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]


def test_labels_that_are_no_symbols_are_refused() -> None:
    for labels in (None, LabelSet(["cat", "dog"])):
        with pytest.raises(ValueError, match="speech_recognition"):
            CtcCriterion(CtcConfig()).set_labels(labels)


def test_a_model_without_audio_is_refused() -> None:
    criterion = CtcCriterion(CtcConfig())
    criterion.set_labels(LABELS)
    with pytest.raises(ValueError, match="no frontend for `audio`"):
        criterion.build(Data2VecModel(ARCHS["image_tiny"]()))
