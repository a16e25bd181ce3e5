"""Long recordings in chunks: exact where nothing is cut, close where something is, and memory that is said in advance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.extraction.chunks import estimate_memory, estimate_shard, find_free_memory, iterate_chunks
from d2v_plugin.extraction.features import Extractor
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.models.pooling import pool_tokens
from d2v_plugin.verbs.extract import recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Data2VecModel:
    torch.manual_seed(0)
    return Data2VecModel(ARCHS["audio_tiny"]()).eval().requires_grad_(False)


def join(model: Data2VecModel, waveform: Tensor, seconds: float) -> list[Tensor]:
    """The outputs of all blocks, from chunks."""
    parts = [features.layers for features in iterate_chunks(model, waveform, int(seconds * 16_000))]
    return [torch.cat(layers, dim=1) for layers in zip(*parts, strict=True)]


def test_what_fits_into_a_chunk_is_exact_and_the_rest_is_close(model: Data2VecModel) -> None:
    waveform = torch.randn(1, 40_000)
    whole = model.extract_features(waveform)
    assert join(model, waveform, 2.5)[-1].equal(whole.layers[-1])

    cut = join(model, waveform, 1.0)
    assert [layer.shape for layer in cut] == [layer.shape for layer in whole.layers]
    for ours, theirs in zip(cut, whole.layers, strict=True):
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=2).mean() > 0.9


def test_every_frame_comes_from_its_own_samples(model: Data2VecModel) -> None:
    """Frames in the middle of a click see it, those a chunk away do not."""
    silence, click = torch.zeros(1, 64_000), torch.zeros(1, 64_000)
    click[0, 48_000] = 9.0
    changed = (join(model, click, 1.0)[-1] - join(model, silence, 1.0)[-1]).abs().amax(dim=2)[0]

    assert changed.argmax() in range(140, 160)
    assert not changed[:100].any()


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_long_and_short_samples_of_a_batch_are_told_apart(model: Data2VecModel, pooling: Any) -> None:
    inputs, lengths = torch.randn(2, 40_000), torch.tensor([40_000, 9_000])
    batch = Batch(Modality.AUDIO, inputs, torch.tensor([4, 2]), torch.arange(40_000) >= lengths[:, None], 9_000)
    found = Extractor(model, {"layer_3": [3]}, pooling, torch.float32, CPU, chunk_seconds=1.0).compute([batch])

    short = model.extract_features(inputs[1:, :9_000]).layers[3][0]
    assert found["ids"].tolist() == [2, 4]
    expected = short.mean(dim=0) if pooling == "mean" else short
    torch.testing.assert_close(found["layer_3"][0] if pooling == "mean" else found["layer_3"][:27], expected)


@pytest.mark.parametrize("pooling", ["mean", "statistics", "none"])
def test_chunks_are_pooled_as_they_come(model: Data2VecModel, pooling: Any) -> None:
    waveform = torch.randn(1, 40_000)
    batch = Batch(Modality.AUDIO, waveform, torch.tensor([0]), None, 40_000)
    found = Extractor(model, {"top_2": [2, 3]}, pooling, torch.float32, CPU, chunk_seconds=1.0).compute([batch])

    whole = torch.stack(join(model, waveform, 1.0)[2:]).mean(dim=0)
    expected = whole[0] if pooling == "none" else pool_tokens(whole, None, pooling)
    torch.testing.assert_close(found["top_2"], expected)


def test_memory_is_said_in_advance(model: Data2VecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: Any = SimpleNamespace(lengths=np.array([1000, 12 * 60 * 16_000]), manifest="m/valid.tsv")
    arrays = {"layer_3": [3]}
    needed = estimate_memory(model, 12 * 60 * 16_000)
    warnings: list[str] = []
    monkeypatch.setattr(recipe.log, "warning", lambda message, *values: warnings.append(message.format(*values)))

    monkeypatch.setattr(recipe, "find_free_memory", lambda device: 2 * needed)
    recipe.check_memory(Extractor(model, arrays, "mean", torch.float32, CPU), rows, 10)
    assert not warnings
    monkeypatch.setattr(recipe, "find_free_memory", lambda device: needed)
    recipe.check_memory(Extractor(model, arrays, "mean", torch.float32, CPU), rows, 10)
    assert len(warnings) == 1 and "m/valid.tsv (12.0 minutes) takes about" in warnings[0]
    monkeypatch.setattr(recipe, "find_free_memory", lambda device: needed - 1)
    with pytest.raises(RecipeError, match=r"m/valid.tsv \(12.0 minutes\) takes about .* Set `features.chunk_seconds`"):
        recipe.check_memory(Extractor(model, arrays, "mean", torch.float32, CPU), rows, 10)
    recipe.check_memory(Extractor(model, arrays, "mean", torch.float32, CPU, chunk_seconds=60.0), rows, 10)

    # 12 minutes have 36,000 frames; they are written as they are, and lie in memory twice.
    kept = estimate_shard(model, rows.lengths, 10, 1, torch.float16)
    assert kept == 2 * (12 * 60 * 16_000 // 320 + 3) * model.config.dim * 2
    monkeypatch.setattr(recipe, "find_free_memory", lambda device: kept - 1)
    with pytest.raises(RecipeError, match=r"A shard of m/valid.tsv .*1 arrays\) takes about .* Set a lower"):
        recipe.check_memory(Extractor(model, arrays, "none", torch.float16, CPU, chunk_seconds=60.0), rows, 10)
    assert (find_free_memory(CPU) or 1) > 0
