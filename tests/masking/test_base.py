"""Masks: the statistics of the original, exact counts, and randomness that depends on nothing but what names a row."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

import d2v_plugin  # noqa: F401  # isort: skip
import fairseq2.recipe  # noqa: F401  # isort: skip
from fairseq2.recipe.component import ComponentManager, _StandardComponentManager
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.structured import StandardValueConverter, ValueConverter
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from d2v_plugin.core.random import Stream, gaussian, row_keys, uniform
from d2v_plugin.core.registry import create
from d2v_plugin.masking.base import MaskSampler, MaskSection
from d2v_plugin.masking.drawing import split_mask
from d2v_plugin.masking.random_blocks import (
    BlockMaskConfig,
    BlockMaskSampler,
    InverseBlockMaskSampler,
    RandomMaskConfig,
    RandomMaskSampler,
)
from d2v_plugin.verbs.registration import register_criteria

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mask_stats.json").read_text())

SETTINGS = [name for name in GOLDEN if name != "about"]

# The statistics below are some 2,500 z-scores in all, far from independent; beyond 5 is no accident.
LIMIT = 5.0


def make_sampler(name: str, **config: Any) -> MaskSampler:
    if name == "random":
        return RandomMaskSampler(RandomMaskConfig(**config))

    kls = InverseBlockMaskSampler if name == "inverse_block" else BlockMaskSampler

    return kls(BlockMaskConfig(**config))


def make_keys(count: int, *, seed: int = 3, step: int = 11, num_views: int = 1) -> Tensor:
    return row_keys(seed, step, torch.arange(count), num_views)


@pytest.fixture(scope="module", params=SETTINGS)
def drawn(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Tensor]:
    """A setting of the original, and 4,000 of our masks in that setting."""
    golden = GOLDEN[request.param]

    sampler = make_sampler(golden["sampler"], **golden["config"])

    return golden, sampler(make_keys(4000), tuple(golden["shape"]))


def z_score(ours: Tensor, golden: float, golden_count: int) -> float:
    """How many standard errors the mean of ``ours`` is away from that of the original's ``golden_count`` masks."""
    # A statistic that never varies in our sample may still be one in a few thousand in theirs.
    variance = float(ours.var().clamp_min(1 / golden_count))

    return (float(ours.mean()) - golden) / (variance * (1 / len(ours) + 1 / golden_count)) ** 0.5


def label_regions(cells: Tensor, shape: list[int]) -> tuple[Tensor, Tensor]:
    """Find runs (1-D) or 4-connected components (2-D): the row and the size of each."""
    grid = cells.view(-1, *shape).numpy()

    structure = ndimage.generate_binary_structure(grid.ndim, 1)
    structure[0] = structure[-1] = False

    labels, _ = ndimage.label(grid, structure)

    flat = torch.from_numpy(labels).view(cells.shape).long()
    sizes = flat.flatten().bincount()[1:]
    rows = torch.zeros_like(sizes)
    rows[flat[cells] - 1] = cells.nonzero()[:, 0]

    return rows, sizes


def test_every_row_masks_as_many_cells_as_the_original(drawn: tuple[dict[str, Any], Tensor]) -> None:
    golden, masks = drawn

    assert (masks.sum(dim=1) == golden["num_masked"]).all()


def test_positions_are_masked_as_often_as_in_the_original(drawn: tuple[dict[str, Any], Tensor]) -> None:
    golden, masks = drawn

    theirs = torch.tensor(golden["position_frequency"])
    ours = masks.float().mean(dim=0)

    variance = ours * (1 - ours) * (1 / len(masks) + 1 / golden["num_rows"])
    z = (theirs - ours) / variance.sqrt()

    assert z.abs().max() < LIMIT
    assert z.square().mean() < 1 + 6 * (2 / z.numel()) ** 0.5


@pytest.mark.parametrize("state", ["masked", "kept"])
def test_regions_are_as_many_and_as_large_as_in_the_original(drawn: tuple[dict[str, Any], Tensor], state: str) -> None:
    golden, masks = drawn

    rows, sizes = label_regions(masks if state == "masked" else ~masks, golden["shape"])

    def count_per_row(chosen: Tensor) -> Tensor:
        return rows[chosen].bincount(minlength=len(masks)).double()

    histogram, num_rows = golden[f"{state}_region_sizes"], golden["num_rows"]

    total = count_per_row(sizes > 0)
    assert abs(z_score(total, golden[f"{state}_regions_per_row"], num_rows)) < LIMIT

    # Sizes too rare for a normal approximation count together.
    common = [int(size) for size, count in histogram.items() if count >= 50]

    for size in common:
        assert abs(z_score(count_per_row(sizes == size), histogram[str(size)] / num_rows, num_rows)) < LIMIT, size

    rare = sum(count for size, count in histogram.items() if int(size) not in common)
    assert abs(z_score(count_per_row(~torch.isin(sizes, torch.tensor(common))), rare / num_rows, num_rows)) < LIMIT


def test_neighbours_depend_on_each_other_as_in_the_original(drawn: tuple[dict[str, Any], Tensor]) -> None:
    golden, masks = drawn

    directions = {"sequence": (1,), "horizontal": (0, 1), "vertical": (1, 0), "diagonal": (1, 1)}

    cells = masks if "sequence" in golden["lag"] else ~masks
    cells = cells.view(-1, *golden["shape"])

    for name, frequencies in golden["lag"].items():
        for lag, golden_frequency in frequencies.items():
            offsets = [d * int(lag) for d in directions[name]]
            here = cells[(slice(None), *(slice(None, -o or None) for o in offsets))].flatten(1)
            there = cells[(slice(None), *(slice(o, None) for o in offsets))].flatten(1)

            # A ratio of two means: its error is that of (both - ratio · one) over the mean of the latter.
            both, one = (here & there).sum(dim=1).double(), here.sum(dim=1).double()
            deviation = (both - golden_frequency * one) / one.mean()

            assert abs(z_score(deviation, 0.0, golden["num_rows"])) < LIMIT, (name, lag)


def random_cases(count: int) -> Iterator[tuple[MaskSampler, tuple[int, ...]]]:
    rng = random.Random(5)

    for _ in range(count):
        shape = (rng.randint(2, 300),) if rng.random() < 0.5 else (rng.randint(2, 20), rng.randint(2, 20))
        name = rng.choice(["random", "block", "inverse_block"])
        config: dict[str, float] = {"ratio": rng.uniform(0.05, 0.95)}
        if name != "random":
            config["block_size"] = rng.randint(1, min(10, *shape))
            config |= {"adjust": rng.uniform(-0.1, 0.3), "dropout": rng.choice([0.0, 0.3])}
        sampler = make_sampler(name, **config)
        if 0 < sampler.num_masked(shape) < torch.Size(shape).numel():
            yield sampler, shape


def test_every_row_masks_exactly_the_promised_number() -> None:
    keys = make_keys(8, num_views=2)

    cases = list(random_cases(200))
    assert len(cases) > 150

    for sampler, shape in cases:
        mask = sampler(keys, shape)

        assert mask.shape == (16, torch.Size(shape).numel()) and mask.dtype == torch.bool
        assert (mask.sum(dim=1) == sampler.num_masked(shape)).all(), (sampler, shape)


def test_masks_never_touch_padding_and_rows_stay_equal() -> None:
    for sampler, shape in random_cases(200):
        if len(shape) == 2 or shape[0] < 40:
            continue
        lengths = torch.randint(30, shape[0] + 1, (16,), generator=torch.Generator().manual_seed(shape[0]))
        padding_mask = torch.arange(shape[0]) >= lengths[:, None]

        mask = sampler(make_keys(16), shape, padding_mask=padding_mask, min_length=int(lengths.min()))

        assert not (mask & padding_mask).any()
        assert (mask.sum(dim=1) == sampler.num_masked(int(lengths.min()))).all()


def test_windows_are_drawn_all_over_the_valid_part_of_a_row() -> None:
    sampler = make_sampler("block", ratio=0.5, block_size=5, adjust=0.05)

    padding_mask = (torch.arange(200) >= torch.tensor([50, 100, 200])[:, None]).repeat(2000, 1)

    mask = sampler(make_keys(6000), (200,), padding_mask=padding_mask, min_length=50).view(-1, 3, 200).double().mean(dim=0)

    # 25 positions are masked in every row; only the borders get fewer.
    for row, length in enumerate((50, 100, 200)):
        assert mask[row, 5 : length - 5].sub(25 / length).abs().max() < 0.05


def test_padding_on_the_right_changes_no_mask_of_the_shortest_row() -> None:
    sampler = make_sampler("inverse_block", ratio=0.6, block_size=4, adjust=0.1)

    padding_mask = (torch.arange(90) >= 60).expand(5, 90)

    padded = sampler(make_keys(5), (90,), padding_mask=padding_mask, min_length=60)

    torch.testing.assert_close(padded[:, :60], sampler(make_keys(5), (60,)))


@pytest.mark.parametrize("name", ["random", "block", "inverse_block"])
@pytest.mark.parametrize("shape", [(99,), (14, 14)])
def test_a_mask_depends_only_on_seed_step_sample_and_view(name: str, shape: tuple[int, ...]) -> None:
    sampler = make_sampler(name, ratio=0.6)

    ids = torch.tensor([5, 2**40 + 5, 7, 0])

    mask = sampler(row_keys(1, 2, ids, 3), shape)

    # Another batch, in another order, with fewer views.
    other = sampler(row_keys(1, 2, torch.tensor([99, 7, 2**40 + 5]), 2), shape)
    torch.testing.assert_close(other[[2, 3, 4, 5]], mask[[6, 7, 3, 4]])

    assert len(mask.unique(dim=0)) == 12
    for keys in (row_keys(2, 2, ids, 3), row_keys(1 + 2**32, 2, ids, 3), row_keys(1, 3, ids, 3)):
        assert not (sampler(keys, shape) == mask).all(dim=1).any()


def test_keys_do_not_collide() -> None:
    keys = torch.cat([row_keys(seed, step, torch.arange(2000), 16) for seed in range(3) for step in range(3)])

    assert len(keys.unique()) == len(keys)
    assert keys.min() >= 0


def test_keys_and_numbers_stay_the_same_in_later_versions() -> None:
    """A resumed run must go on with the masks it would have had; a change here breaks that."""
    keys = row_keys(1, 2, torch.tensor([3]), 2)

    assert keys.tolist() == [7118489842396261467, 2385923398571674051]
    assert uniform(keys, 2, stream=5).mul(2**24).long().tolist() == [[6052575, 13831211], [1896400, 12689477]]
    kept = ~make_sampler("inverse_block")(keys, (4, 4))
    assert kept.nonzero().tolist() == [[0, 2], [0, 3], [0, 4], [1, 12], [1, 14], [1, 15]]


def test_hashing_in_32_bits_wraps_around_like_exact_arithmetic() -> None:
    from d2v_plugin.core.random import finalize, mix

    words = torch.randint(-(2**31), 2**31, (10_000,), generator=torch.Generator().manual_seed(1))
    words[:4] = torch.tensor([0, -1, 2**31 - 1, -(2**31)])

    # `finalize` is `mix` but for the first line, a permutation that undoes itself in two applications.
    unmixed = [word ^ word >> 16 for word in (words & 0xFFFF_FFFF).tolist()]

    ours = finalize(words.to(torch.int32)).long() & 0xFFFF_FFFF

    assert ours.tolist() == [mix(word) for word in unmixed]
    assert mix(torch.tensor(unmixed)).tolist() == ours.tolist()


def test_numbers_of_a_row_do_not_depend_on_the_other_rows() -> None:
    keys = make_keys(200)

    # Long enough for several chunks.
    for draw in (uniform, gaussian):
        numbers = draw(keys, 5001, stream=3)
        assert numbers.shape == (200, 5001) and numbers.dtype == torch.float32
        torch.testing.assert_close(draw(keys[[150, 3]], 5001, stream=3), numbers[[150, 3]], rtol=1e-6, atol=1e-6)


def test_uniform_and_gaussian_follow_their_distributions() -> None:
    for count, num_rows in ((1_000_000, 1), (100, 10_000), (1, 1_000_000)):
        keys = make_keys(num_rows)

        assert stats.kstest(uniform(keys, count, stream=0).flatten().numpy(), "uniform").pvalue > 1e-3
        assert stats.kstest(gaussian(keys, count, stream=0).flatten().numpy(), "norm").pvalue > 1e-3

    numbers = uniform(make_keys(100), 100_000, stream=0)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert gaussian(make_keys(100), 100_000, stream=0).abs().max() < 4.9


@pytest.mark.parametrize("draw", [uniform, gaussian])
def test_rows_positions_and_streams_are_uncorrelated(draw: Any) -> None:
    first, second = (draw(make_keys(64), 20_000, stream=stream).double() for stream in (0, 1))
    views = draw(make_keys(32, num_views=2), 20_000, stream=0).double()
    later = draw(make_keys(64, step=12), 20_000, stream=0).double()

    pairs = {
        "streams": (first, second),
        "samples": (first[:-1], first[1:]),
        "positions": (first[:, :-1], first[:, 1:]),
        "pairs of one hash": (first[:, :10_000], first[:, 10_000:]),
        "views": (views[::2], views[1::2]),
        "steps": (first, later),
    }

    for name, (a, b) in pairs.items():
        for power in (1, 2):
            x, y = (v.pow(power) - v.pow(power).mean() for v in (a, b))
            correlation = (x * y).mean() / (x.std() * y.std())
            assert abs(correlation) * a.numel() ** 0.5 < 4.5, (name, power)


def test_drawing_reads_nothing_back_from_the_device() -> None:
    keys = row_keys(1, 2, torch.empty(4, dtype=torch.int64, device="meta"), 2)

    padding_mask = torch.empty((8, 50), dtype=torch.bool, device="meta")

    for name in ("random", "block", "inverse_block"):
        mask = make_sampler(name, ratio=0.6)(keys, (50,), padding_mask=padding_mask, min_length=40)
        assert [t.shape for t in split_mask(mask, 24)] == [(8, 26), (8, 24)]

    assert gaussian(keys, 7, stream=Stream.NOISE).shape == uniform(keys, 7, stream=Stream.NOISE).shape == (8, 7)


def test_split_mask_gives_ascending_positions_of_kept_and_masked_cells() -> None:
    sampler = make_sampler("block", ratio=0.5, block_size=5, adjust=0.05)

    mask = sampler(make_keys(50), (99,))

    kept, masked = split_mask(mask, sampler.num_masked(99))

    for row in range(50):
        assert masked[row].tolist() == mask[row].nonzero()[:, 0].tolist()
        assert kept[row].tolist() == (~mask[row]).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("field", "name", "config", "shape"),
    [
        ("ratio", "random", {}, (1,)),
        ("ratio", "random", {"ratio": 0.0}, (99,)),
        ("ratio", "random", {"ratio": 1.0}, (99,)),
        ("ratio", "block", {"block_size": 1}, (1,)),
        ("ratio", "block", {"ratio": 0.01}, (7, 7)),
        ("ratio", "block", {"ratio": 1.0}, (7, 7)),
        ("ratio", "inverse_block", {"ratio": 0.0}, (99,)),
        ("ratio", "inverse_block", {"ratio": 0.99}, (7, 7)),
        ("block_size", "block", {"block_size": 5}, (4,)),
        ("block_size", "inverse_block", {"block_size": 5}, (4, 20)),
        ("block_size", "inverse_block", {"block_size": 0}, (99,)),
        ("block_size", "inverse_block", {}, (0, 0)),
    ],
)
def test_degenerate_settings_raise_and_name_the_field(
    field: str, name: str, config: dict[str, Any], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=rf"`{field}` must"):
        make_sampler(name, **config)(make_keys(2), shape)


def test_a_shortest_row_that_would_not_be_masked_raises() -> None:
    padding_mask = torch.zeros((2, 50), dtype=torch.bool)

    with pytest.raises(ValueError, match=r"`ratio` must .* 1 position"):
        make_sampler("random")(make_keys(2), (50,), padding_mask=padding_mask, min_length=1)


def test_padding_without_the_shortest_length_raises() -> None:
    padding_mask = torch.zeros((2, 50), dtype=torch.bool)

    with pytest.raises(ValueError, match="`padding_mask` and `min_length`"):
        make_sampler("random")(make_keys(2), (50,), padding_mask=padding_mask)


@pytest.mark.parametrize(
    ("field", "value"), [("ratio", 0.0), ("ratio", 1.0), ("block_size", 0), ("adjust", 1.5), ("dropout", -0.1)]
)
def test_wrong_settings_of_a_recipe_are_refused_with_the_name_of_the_field(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=f"`{field}` must"):
        StandardObjectValidator().validate(MaskSection(config=BlockMaskConfig(**{field: value})))


def test_samplers_are_selected_by_name() -> None:
    container = DependencyContainer()
    container.register_type(ComponentManager, _StandardComponentManager, singleton=True)
    container.register_type(ValueConverter, StandardValueConverter)

    register_criteria(container)

    for name, kls in (("random", RandomMaskSampler), ("block", BlockMaskSampler), ("inverse_block", InverseBlockMaskSampler)):
        section = MaskSection(name=name, config={"ratio": 0.3})
        section.structure(container)

        sampler = create(container, MaskSampler, section)

        assert type(sampler) is kls
        assert sampler.num_masked(10) == 10 - int(10 * 0.7) if name != "block" else 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_keys_masks_and_uniform_numbers_are_identical_on_a_gpu() -> None:
    ids = torch.tensor([5, 2**40 + 5, 7, 0])

    for sampler, shape in random_cases(50):
        keys, gpu_keys = (row_keys(1, 2, i, 16) for i in (ids, ids.cuda()))

        torch.testing.assert_close(gpu_keys.cpu(), keys)
        torch.testing.assert_close(sampler(gpu_keys, shape).cpu(), sampler(keys, shape))
        torch.testing.assert_close(uniform(gpu_keys, 999, stream=4).cpu(), uniform(keys, 999, stream=4), rtol=0, atol=0)
        torch.testing.assert_close(gaussian(gpu_keys, 999, stream=4).cpu(), gaussian(keys, 999, stream=4), rtol=1e-5, atol=1e-6)
