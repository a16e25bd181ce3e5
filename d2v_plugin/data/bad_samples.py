"""Samples that cannot be read: dropped, counted, named; too many of them stop the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NoReturn

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.appended_file import AppendedFile
from d2v_plugin.core.log import log
from d2v_plugin.core.ranges import NonNegativeInt, Probability
from d2v_plugin.core.validation import Checked

_NUM_LISTED = 100


class SampleError(RuntimeError):
    """A sample cannot be used; says why."""


class BadSamplesError(RecipeError):
    """Too many samples cannot be used: of those that one rank reads, so that the other ranks do not know."""


@dataclass(kw_only=True)
class BadSampleConfig(Checked):
    """Limits to the unreadable samples that a run puts up with."""

    max_fraction: Probability = 0.001
    """Share of the split's samples that may be bad …"""

    min_count: NonNegativeInt = 10
    """… but at least this many may be, however small the split is."""


class BadSamples:
    """Keeps account of the bad samples of one split, as one rank sees them. Safe to use from many threads."""

    def __init__(
        self,
        split: Path,
        num_samples: int,
        name: Callable[[int], str],
        config: BadSampleConfig,
        report: Path | None,
        file_of: Callable[[int], Path] | None = None,
    ) -> None:
        """
        :param split: the manifest, to name it.
        :param name: tells people which sample a row is: the line it stands on, and what lies behind it.
        :param file_of: tells the manifest of a sample, where ``split`` is joined of several.
        :param report: a file to append them to: manifest, line and location, reason, separated by tabs; None = none.
        """
        self.split = split
        self.num_samples = num_samples
        self._file = None if report is None else AppendedFile(report)
        self.limit = max(config.min_count, int(config.max_fraction * num_samples))
        self.found: dict[int, str] = {}
        self._name = name
        self._file_of = file_of or (lambda _: split)
        self._lock = Lock()

    def name_sample(self, row: int) -> str:
        """Name any sample of the split, good or bad, with the manifest before it."""
        return f"{self._file_of(row)}:{self._name(row)}"

    def add(self, row: int, reason: str) -> None:
        """Count a sample once, however often it is met."""
        with self._lock:
            if row in self.found:
                return
            reason = " ".join(reason.split())
            self.found[row] = f"{self.name_sample(row)}: {reason}"
            log.warning("Dropped a bad sample ({} of at most {}). {}", len(self.found), self.limit, self.found[row])
            if self._file is not None:
                self._file.add(f"{self._file_of(row)}\t{self._name(row)}\t{reason}\n")

    def raise_if_too_many(self) -> None:
        """:raises BadSamplesError: more samples were bad than tolerated, or all of them; lists them."""
        if len(self.found) == self.num_samples:
            self.refuse_all()
        if len(self.found) > self.limit:
            raise BadSamplesError(
                f"{len(self.found)} samples could not be read, which is more than the tolerated {self.limit}; repair or remove "
                f"them, or raise `task.config.bad_samples`:\n{self._list()}"
            )

    def refuse_all(self) -> NoReturn:
        """:raises BadSamplesError: always: none of the samples that are to be read can be; lists them."""
        raise BadSamplesError(
            f"None of the {len(self.found)} samples of {self.split} that are to be read can be used; repair or replace them:\n"
            f"{self._list()}"
        )

    def _list(self) -> str:
        with self._lock:
            rows = sorted(self.found)
            listed = [self.found[row] for row in rows[:_NUM_LISTED]]
        more = len(rows) - _NUM_LISTED

        return "\n".join([*listed, *([f"… and {more:,} more."] if more > 0 else [])])
