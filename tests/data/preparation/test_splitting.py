"""Shares are counted, groups stay together, and what was cut stays cut."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.splitting import SplitOptions, Splitter, find_cuts

RANDOM = np.random.default_rng(0)


def options(**changes: object) -> SplitOptions:
    return {"valid_percent": None, "seed": 42, **changes}  # type: ignore[typeddict-item]


def count(keys: np.ndarray, cuts: dict[str, int]) -> list[int]:
    """How many keys are in each split, those that belong to none last."""
    bounds = [-1, *cuts.values(), 1 << 64]

    return [sum(low < key <= high for key in keys.tolist()) for low, high in pairwise(bounds)]


@pytest.mark.parametrize(
    ("number", "shares", "expected"),
    [
        (1000, {"valid": 5.0}, [50, 950]),
        (999, {"valid": 5.0, "probe": 10.0, "test": 1.0}, [50, 100, 10, 839]),
        (20, {"valid": 1.0}, [1, 19]),
        (4, {"valid": 1.0, "probe": 1.0, "test": 1.0}, [1, 1, 1, 1]),
        (7, {"valid": 100.0}, [7, 0]),
        (8, {"valid": 50.0, "test": 50.0}, [4, 4, 0]),
        (3, {"valid": 90.0, "test": 9.0}, [1, 1, 1]),
    ],
)
def test_shares_are_counted_exactly(number: int, shares: dict[str, float], expected: list[int]) -> None:
    keys = RANDOM.integers(0, 1 << 64, number, dtype=np.uint64)

    assert count(keys, find_cuts(keys, shares)) == expected


def test_groups_are_never_divided_and_the_nearest_number_is_taken() -> None:
    groups = np.sort(RANDOM.integers(0, 1 << 64, 4, dtype=np.uint64))
    keys = groups.repeat([10, 30, 50, 10])

    assert count(keys, find_cuts(keys, {"valid": 30.0})) == [40, 60]
    assert count(keys, find_cuts(keys, {"valid": 20.0})) == [10, 90]


def test_a_cut_lies_where_later_samples_are_shared_alike() -> None:
    keys = RANDOM.integers(0, 1 << 64, 20, dtype=np.uint64)
    low, high = np.sort(keys)[[1, 2]].tolist()
    ideal = (1 << 64) // 10

    assert find_cuts(keys, {"valid": 10.0})["valid"] == min(max(ideal, low), high - 1)


def split(splitter: Splitter, names: list[str]) -> dict[str, str]:
    report = Report()
    units = {name: splitter.find_unit(Path("/in"), name, report) for name in names}
    splitter.cut(np.array([unit.key for unit in units.values() if unit is not None], dtype=np.uint64), report)

    return {name: splitter.split_of(unit) for name, unit in units.items() if unit is not None}


def test_what_is_added_moves_nothing(tmp_path: Path) -> None:
    asked = options(valid_percent=10.0, test_percent=20.0)
    first = Splitter(tmp_path, asked)
    before = split(first, [f"{row}.png" for row in range(50)])
    first.save()
    after = split(Splitter(tmp_path, asked), [f"{row}.png" for row in range(5000)])

    assert list(before.values()).count("valid") == 5 and list(before.values()).count("test") == 10
    assert before.items() <= after.items()
    assert 300 < list(after.values()).count("valid") < 700


def test_other_options_are_counted_anew_and_another_seed_takes_others(tmp_path: Path) -> None:
    names = [f"{row}.png" for row in range(50)]
    first = Splitter(tmp_path, options(valid_percent=10.0))
    before = split(first, names)
    first.save()
    wider = split(Splitter(tmp_path, options(valid_percent=20.0)), names)
    other = split(Splitter(tmp_path, options(valid_percent=10.0, seed=1)), names)

    assert list(wider.values()).count("valid") == 10
    assert {name for name in names if before[name] == "valid"} <= {name for name in names if wider[name] == "valid"}
    assert list(other.values()).count("valid") == 5 and other != before


@pytest.mark.parametrize("content", ["", "{}", '{"seed": 1, "split_by": null, "shares": {}, "cuts": {"valid": "0x1"}}'])
def test_damaged_cuts_are_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text(content)

    with pytest.raises(RecipeError, match=r"splits\.json is (damaged|no JSON)"):
        Splitter(tmp_path, options())


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("folder", ["anna", "anna", "ben", ""]),
        ("regex:_(m|f)", [None, "f", "m", None]),
        ("regex:^[a-z]+", ["anna", "anna", "ben", "x"]),
        (None, ["anna/1.wav", "anna/2_f.wav", "ben/3_m.wav", "x.wav"]),
    ],
)
def test_groups_are_found_in_paths(by: str | None, expected: list[str | None], tmp_path: Path) -> None:
    from d2v_plugin.data.preparation.grouping import Grouping

    names = ["anna/1.wav", "anna/2_f.wav", "ben/3_m.wav", "x.wav"]

    assert [Grouping(by).find(name, name, None) for name in names] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_by": "speaker"}, "`--split-by` must be `folder`, `file`, `regex:EXPRESSION`"),
        ({"split_by": "folder:x"}, "`--split-by` must be"),
        ({"split_by": "regex:("}, "`\\(` is no regular expression"),
        ({"split_by": "table:/nowhere"}, "/nowhere cannot be read"),
        ({"valid_percent": 60.0, "test_percent": 50.0}, "are 110 together"),
        ({"root_splits": {Path("/a"): "test"}, "test_percent": 5.0}, "`--test-percent` has nothing to say"),
        ({"root_splits": {Path("/a"): "test"}, "split_lists": ["valid=x"]}, "x cannot be read"),
    ],
)
def test_mistakes_are_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        Splitter(tmp_path, options(**changes))
