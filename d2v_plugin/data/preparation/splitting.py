"""Which split each sample goes to: official splits, groups that stay together, and shares that are counted.

Samples are ordered by a hash of their names. A share is a cut in that order, made where the count is right, and recorded in the
dataset: later runs keep the cut, so that files that are added move none of the others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np
from fairseq2.recipe.error import RecipeError
from numpy.typing import NDArray
from typing_extensions import NotRequired

from d2v_plugin.core.storage import write_atomically
from d2v_plugin.data.lines import read_json
from d2v_plugin.data.preparation.common import TRAIN, Report
from d2v_plugin.data.preparation.grouping import Grouping, read_lists

SPLITS_FILE: Final = "splits.json"
_DEFAULT_VALID: Final = 1.0
_RANGE: Final = 1 << 64


class SplitOptions(TypedDict):
    """Options of splitting a dataset."""

    valid_percent: float | None
    """Share of the samples to hold out; None = 1, or 0 where splits are given."""

    seed: int
    """Another one holds out other samples."""

    probe_percent: NotRequired[float]
    """Share to fit probes on."""

    test_percent: NotRequired[float]
    """Share for the split ``test``."""

    split_by: NotRequired[str | None]
    """What is never divided; see :class:`~d2v_plugin.data.preparation.grouping.Grouping`."""

    split_lists: NotRequired[Sequence[str]]
    """Official splits: a file of lines ``path<TAB>split``, or ``SPLIT=FILE`` with a path on each line."""

    root_splits: NotRequired[Mapping[Path, str]]
    """Official splits: the one of each folder or file that was given."""


@dataclass(frozen=True)
class Unit:
    """What one sample belongs to."""

    split: str
    """The official split; shares are taken of ``train``."""

    key: int
    """Place in the order, from 0 to 2^64; the same for all samples of a group."""


class Splitter:
    """Splits the samples of one dataset."""

    def __init__(self, out: Path, options: SplitOptions) -> None:
        """
        :param out: the folder of the dataset, which may have the cuts of an earlier run.
        :raises RecipeError: options are wrong or exclude each other, or a file of them cannot be used.
        """
        self._grouping = Grouping(options.get("split_by"))
        self._roots = dict(options.get("root_splits") or {})
        self._listed, self._rest = read_lists(options.get("split_lists") or ())
        if self._roots and (self._listed or self._rest):
            raise RecipeError("`--split-list` cannot be combined with `SPLIT=` before a source; use one of them.")
        self.official = sorted({*self._roots.values(), *self._listed.values()} - {TRAIN})
        """Names of the splits that were given, but for train."""
        self.shares = _check_shares(options, self.official, has_official=bool(self._roots or self._listed or self._rest))
        """Percent of each split that is taken of train."""
        self._seed = options["seed"]
        self._settings = {"seed": self._seed, "split_by": options.get("split_by"), "shares": self.shares}
        self._path = out / SPLITS_FILE
        self._recorded = _read_cuts(self._path)
        self._cuts: dict[str, int] = {}

    @property
    def group_field(self) -> str | None:
        """The field of JSON lines that groups are made by."""
        return self._grouping.field

    @property
    def splits(self) -> list[str]:
        """All splits, in the order in which they are written."""
        given = {*self._roots.values(), *self._listed.values(), self._rest} - {None}
        has_train = (not given or TRAIN in given) and sum(self.shares.values()) < 100

        return [*([TRAIN] if has_train else []), *self.shares, *self.official]

    def find_unit(
        self, folder: Path, name: str, report: Report, *, file: str | None = None, value: str | None = None
    ) -> Unit | None:
        """The unit of a sample; None if it has none, which the report is told.

        :param folder: the source it was found in.
        :param name: of the sample, below that.
        :param file: the name of its file, where samples are parts of one.
        :param value: of the field that groups are made by.
        """
        file = name if file is None else file
        split = self._roots.get(folder / file) or self._roots.get(folder, TRAIN)
        if self._listed or self._rest is not None:
            listed = self._listed.get(file, self._rest)
            if listed is None:
                report.drop(name, "it is not in the list of splits")
                return None
            split = listed
        group = self._grouping.find(name, file, value)
        if group is None:
            report.drop(name, f"it has no group: {self._grouping.text}")
            return None
        digest = hashlib.blake2b(f"{self._seed}\0{group}".encode("utf-8", errors="surrogateescape"), digest_size=8).digest()

        return Unit(split, int.from_bytes(digest, "little"))

    def cut(self, keys: NDArray[np.uint64], report: Report) -> None:
        """Decide how far each share reaches: as in the last run if there was one with the same options, else counted.

        :param keys: (samples,) of all usable samples of ``train``.
        :raises RecipeError: there are fewer groups than splits.
        """
        if not self.shares:
            return
        if self._recorded is not None and all(self._recorded[name] == value for name, value in self._settings.items()):
            self._cuts = {split: int(cut, 16) for split, cut in self._recorded["cuts"].items()}
            report.notes.append(f"shares as in the last run, so that nothing moves; without {SPLITS_FILE} they are counted")
            return
        if self._recorded is not None:
            report.notes.append("shares are counted, since the options are others than in the last run; samples may have moved")
        has_rest, num_groups = sum(self.shares.values()) < 100, len(np.unique(keys))
        if num_groups < len(self.shares) + has_rest:
            raise RecipeError(
                f"A split would be empty: {num_groups} {'samples' if self._grouping.text is None else 'groups'} for "
                f"{len(self.shares) + has_rest} splits. Nothing was written. Give more files, or other shares.\n{report}"
            )
        self._cuts = find_cuts(keys, self.shares)

    def split_of(self, unit: Unit) -> str:
        """The split of a sample, after :meth:`cut`."""
        if unit.split != TRAIN:
            return unit.split

        return next((split for split, cut in self._cuts.items() if unit.key <= cut), TRAIN)

    def save(self) -> None:
        """Record the cuts for the next run."""
        if self._cuts:
            content = {**self._settings, "cuts": {split: f"{cut:#018x}" for split, cut in self._cuts.items()}}
            write_atomically(self._path, json.dumps(content, indent=2, ensure_ascii=True) + "\n")
        else:
            self._path.unlink(missing_ok=True)


def find_cuts(keys: NDArray[np.uint64], shares: Mapping[str, float]) -> dict[str, int]:
    """The last key of each split, so that each has its share of the samples, rounded, but at least one group.

    Between two groups there is room for the cut: it goes as close as it can to where the share of all possible keys ends, so
    that what is added later is shared alike.

    :param keys: (samples,) of at least as many groups as there are splits; samples of a group have the same.
    :param shares: percent, by split; what is left belongs to no split here.
    """
    groups, counts = np.unique(keys, return_counts=True)
    ends = counts.cumsum()
    has_rest = sum(shares.values()) < 100
    cuts: dict[str, int] = {}
    wanted, last = 0.0, -1
    for number, (split, share) in enumerate(shares.items(), 1):
        wanted += share
        nearest = int(np.abs(ends - wanted / 100 * len(keys)).argmin())
        last = min(max(nearest, last + 1), len(groups) - 1 - (len(shares) - number) - has_rest)
        next_key = int(groups[last + 1]) if last + 1 < len(groups) else _RANGE
        cuts[split] = min(max(int(wanted / 100 * _RANGE), int(groups[last])), next_key - 1)

    return cuts


def _check_shares(options: SplitOptions, official: Sequence[str], *, has_official: bool) -> dict[str, float]:
    valid = options["valid_percent"]
    asked = {
        "valid": (0.0 if has_official else _DEFAULT_VALID) if valid is None else valid,
        "probe": options.get("probe_percent", 0.0),
        "test": options.get("test_percent", 0.0),
    }
    shares = {split: share for split, share in asked.items() if share > 0}
    if both := next((split for split in shares if split in official), None):
        raise RecipeError(f"The split `{both}` is given, so that `--{both}-percent` has nothing to say; leave it out.")
    if sum(shares.values()) > 100:
        listed = " and ".join(f"`--{split}-percent`" for split in shares)
        raise RecipeError(f"{listed} are {sum(shares.values()):g} together; at most 100 percent can be shared out.")

    return shares


def _read_cuts(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content = read_json(path)
    try:
        if not all(re.fullmatch(r"0x[0-9a-f]{16}", cut) for cut in content["cuts"].values()):
            raise ValueError
        return {name: content[name] for name in ("seed", "split_by", "shares", "cuts")}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RecipeError(f"{path} is damaged. Remove it: the shares are then counted anew, and some samples move.") from None
