"""The masks of data2vec 1.0 look like the original's: compared with 2,000 masks drawn by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_plugin.core.random import row_keys
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.masking.spans_and_beit import BeitBlockMaskConfig, BeitBlockMaskSampler, SpanMaskConfig, SpanMaskSampler
from d2v_plugin.masking.tokens import corrupt_tokens

ORIGINALS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "d2v1_masks.json").read_text())
KEYS = row_keys(1, 1, torch.arange(2000), 1)

SPEECH = SpanMaskSampler(SpanMaskConfig(ratio=0.45))
TEXT = SpanMaskSampler(SpanMaskConfig(probability=0.35, length=4, reach_over=True))
IMAGES = BeitBlockMaskSampler(BeitBlockMaskConfig(num_patches=75))


@pytest.mark.parametrize(
    ("sampler", "original"), [(SPEECH, "d2v1_audio_base_L499"), (TEXT, "d2v1_text_base_L512")], ids=["speech", "text"]
)
def test_spans_have_the_statistics_of_the_original(sampler: MaskSampler, original: str) -> None:
    expected = ORIGINALS[original]
    mask = sampler(KEYS, (expected["L"],))

    assert float(mask.float().mean()) == pytest.approx(expected["mean_masked_fraction"], abs=0.003)
    for lag, share in expected["p_masked_given_masked_at_lag"].items():
        both = mask[:, : -int(lag)] & mask[:, int(lag) :]
        assert float(both.sum() / mask[:, : -int(lag)].sum()) == pytest.approx(share, abs=0.01)
    # The original never masks the last frame of speech; sampling accounts for the rest.
    frequencies = torch.tensor(expected["position_masked_freq"])[:-1]
    assert float((mask.float().mean(dim=0)[:-1] - frequencies).abs().max()) < 0.07
    starts = torch.cat([mask[:, :1], mask[:, 1:] & ~mask[:, :-1]], dim=1)
    assert float(starts.sum(dim=1).float().mean()) == pytest.approx(expected["masked_runs"]["mean_per_mask"], rel=0.04)


def test_blocks_have_the_statistics_of_the_original() -> None:
    expected = ORIGINALS["d2v1_vision_base_L196"]

    mask = IMAGES(KEYS, (14, 14))
    kept = ~mask.view(-1, 14, 14)

    frequencies = torch.tensor(expected["position_masked_freq"])
    assert float((mask.float().mean(dim=0) - frequencies).abs().max()) < 0.05
    for lag, share in expected["p_kept_given_kept_at_lag"]["horizontal"].items():
        both = kept[:, :, : -int(lag)] & kept[:, :, int(lag) :]
        assert float(both.sum() / kept[:, :, : -int(lag)].sum()) == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize(
    ("sampler", "shape"), [(SPEECH, (499,)), (TEXT, (512,)), (IMAGES, (14, 14))], ids=["speech", "text", "images"]
)
def test_every_row_masks_exactly_as_many_and_no_row_depends_on_the_others(sampler: MaskSampler, shape: tuple[int, ...]) -> None:
    keys = KEYS[:64]
    mask = sampler(keys, shape)

    assert set(mask.sum(dim=1).tolist()) == {sampler.num_masked(shape)}
    assert torch.equal(sampler(keys.flip(0), shape), mask.flip(0))
    assert torch.equal(sampler(keys[5:6], shape)[0], mask[5])
    assert mask.unique(dim=0).size(0) == 64


@pytest.mark.parametrize("sampler", [SPEECH, TEXT, SpanMaskSampler(SpanMaskConfig())])
def test_spans_never_touch_padding(sampler: MaskSampler) -> None:
    lengths = torch.tensor([100, 60, 41, 99])
    padding_mask = torch.arange(100) >= lengths[:, None]

    mask = sampler(KEYS[:4], (100,), padding_mask=padding_mask, min_length=41)

    assert not (mask & padding_mask).any()
    assert mask.sum(dim=1).tolist() == [sampler.num_masked(41)] * 4


def find_runs(row: Tensor) -> list[int]:
    return [len(run) for run in "".join("x" if masked else " " for masked in row.tolist()).split()]


def test_spans_are_whole_except_for_the_last_one() -> None:
    sampler = SpanMaskSampler(SpanMaskConfig(probability=0.3))
    lengths = torch.arange(100, 300)
    padding_mask = torch.arange(300) >= lengths[:, None]

    for mask in (sampler(KEYS[:200], (300,)), sampler(KEYS[:200], (300,), padding_mask=padding_mask, min_length=100)):
        for row in mask:
            assert sum(length < 10 for length in find_runs(row)) <= 1


def test_spans_that_reach_over_are_cut_at_the_end_of_their_row() -> None:
    sampler = SpanMaskSampler(SpanMaskConfig(probability=0.2, reach_over=True))
    lengths = torch.arange(100, 1100) // 8 + 88
    padding_mask = torch.arange(300) >= lengths[:, None]
    mask = sampler(KEYS[:1000], (300,), padding_mask=padding_mask, min_length=100)

    for row in mask:
        # One is the last one drawn, one may be at the end.
        assert sum(length < 10 for length in find_runs(row)) <= 2
    assert float(mask[torch.arange(1000), lengths - 1].float().mean()) > 0.05


def test_spans_of_one_mask_single_tokens() -> None:
    sampler = SpanMaskSampler(SpanMaskConfig(probability=0.15, length=1))

    assert sampler.num_masked(512) == round(0.15 * 512)
    assert float(sampler(KEYS, (512,)).float().mean(dim=0).std()) < 0.02


@pytest.mark.parametrize("length", range(10, 40))
def test_short_sequences_can_be_masked(length: int) -> None:
    for sampler in (SPEECH, SpanMaskSampler(SpanMaskConfig()), SpanMaskSampler(SpanMaskConfig(length=10, reach_over=True))):
        assert set(sampler(KEYS[:16], (length,)).sum(dim=1).tolist()) == {sampler.num_masked(length)}


def test_60_percent_of_the_patches_are_in_blocks() -> None:
    sampler = BeitBlockMaskSampler(BeitBlockMaskConfig())

    region = sampler.prefer(KEYS, (14, 14), (14, 14), None)

    assert region is not None
    counts = region.sum(dim=1)
    assert int(counts.max()) == 120
    assert float(counts.float().mean()) > 119  # the rest is filled up one by one
    assert sampler.num_masked((14, 14)) == 120


@pytest.mark.parametrize(
    ("sampler", "shape", "message"),
    [
        (SPEECH, (14, 14), "`span` masks sequences"),
        (IMAGES, (196,), "`beit_block` masks images"),
        (SPEECH, (9,), "`length` must be between 1 and the input's length"),
        (IMAGES, (8, 8), "`num_patches` must be less than the number of patches"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(sampler: MaskSampler, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(KEYS[:2], shape)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SpanMaskConfig(probability=1.5), "`probability`"),
        (SpanMaskConfig(length=0), "`length`"),
        (SpanMaskConfig(ratio=0.0), "`ratio`"),
        (BeitBlockMaskConfig(num_patches=0), "`num_patches`"),
        (BeitBlockMaskConfig(min_aspect=2.0), "`min_aspect`"),
    ],
)
def test_settings_without_meaning_are_refused(config: Any, message: str) -> None:
    assert message in str(config.validate())
    assert not str(type(config)().validate())


def test_tokens_are_corrupted_as_in_bert() -> None:
    tokens = torch.randint(4, 100, (2000, 50))
    mask = torch.arange(50).expand(2000, 50) % 2 == 0
    masked = tokens.masked_fill(mask, 100)

    mixed = corrupt_tokens(masked, tokens, mask, KEYS, words=(4, 100), random_share=0.1, kept_share=0.1)

    assert torch.equal(mixed[~mask], tokens[~mask])
    assert float(mixed[mask].eq(100).float().mean()) == pytest.approx(0.8, abs=0.01)
    # A random token is the original one in one of 96 cases.
    assert float(mixed[mask].eq(tokens[mask]).float().mean()) == pytest.approx(0.1 + 0.1 / 96, abs=0.01)
    words = mixed[mask & mixed.ne(100) & mixed.ne(tokens)]
    assert int(words.min()) == 4
    assert int(words.max()) == 99
