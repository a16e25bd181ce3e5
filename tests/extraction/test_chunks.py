"""Long recordings in chunks: exact where nothing is cut, close where something is, and memory that is said in advance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.extraction.chunks import estimate_memory, extract_in_chunks, find_free_memory
from d2v_plugin.extraction.features import Extractor
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.verbs.extract import recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Data2VecModel:
    torch.manual_seed(0)
    return Data2VecModel(ARCHS["audio_tiny"]()).eval().requires_grad_(False)


def test_what_fits_into_a_chunk_is_exact_and_the_rest_is_close(model: Data2VecModel) -> None:
    waveform = torch.randn(1, 40_000)
    whole = model.extract_features(waveform)
    assert extract_in_chunks(model, waveform, 2.5).x.equal(whole.x)

    cut = extract_in_chunks(model, waveform, 1.0)
    assert [layer.shape for layer in cut.layers] == [layer.shape for layer in whole.layers]
    for ours, theirs in zip(cut.layers, whole.layers, strict=True):
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=2).mean() > 0.9


def test_every_frame_comes_from_its_own_samples(model: Data2VecModel) -> None:
    """Frames in the middle of a click see it, those a chunk away do not."""
    silence, click = torch.zeros(1, 64_000), torch.zeros(1, 64_000)
    click[0, 48_000] = 9.0
    changed = (extract_in_chunks(model, click, 1.0).x - extract_in_chunks(model, silence, 1.0).x).abs().amax(dim=2)[0]

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


def test_memory_is_said_in_advance(model: Data2VecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: Any = SimpleNamespace(lengths=np.array([1000, 12 * 60 * 16_000]), manifest="m/valid.tsv")
    needed = estimate_memory(model, 12 * 60 * 16_000)
    warnings: list[str] = []
    monkeypatch.setattr(recipe.log, "warning", lambda message, *values: warnings.append(message.format(*values)))

    monkeypatch.setattr(recipe, "find_free_memory", lambda device: 2 * needed)
    recipe.check_memory(model, rows, None, CPU)
    assert not warnings
    monkeypatch.setattr(recipe, "find_free_memory", lambda device: needed)
    recipe.check_memory(model, rows, None, CPU)
    assert len(warnings) == 1 and "m/valid.tsv (12.0 minutes) takes about" in warnings[0]
    monkeypatch.setattr(recipe, "find_free_memory", lambda device: needed - 1)
    with pytest.raises(RecipeError, match=r"m/valid.tsv \(12.0 minutes\) takes about .* Set `features.chunk_seconds`"):
        recipe.check_memory(model, rows, None, CPU)
    recipe.check_memory(model, rows, 60.0, CPU)
    assert (find_free_memory(CPU) or 1) > 0
