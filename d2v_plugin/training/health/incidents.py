"""The samples of updates that went wrong: a file for each rank, in which they can be looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from torch import Tensor

from d2v_plugin.core.batch import Modality
from d2v_plugin.weights.run_folder import RunFolder

NameSample = Callable[[Modality, int], str]
"""Tells where a sample comes from, given its id."""

_HEADER: Final = "step\tevent\tgradient_norm\tloss\tmodality\tid\tsample\n"
_NUM_SHOWN: Final = 8


@dataclass(frozen=True)
class Pass:
    """A forward pass of one rank."""

    modality: Modality

    ids: Tensor
    """(N,) the ids of its samples."""

    loss: Tensor
    """Scalar: mean over its targets."""


@final
class Suspects:
    """Appends to ``suspects/rank_N.tsv`` of a run: one row for each sample of a reported update."""

    def __init__(self, output_dir: Path, rank: int, name_sample: NameSample) -> None:
        self.path = RunFolder(output_dir).suspects / f"rank_{rank}.tsv"
        self.pattern = RunFolder(output_dir).suspects / "rank_*.tsv"
        self._name_sample = name_sample

    def add(self, step_nr: int, event: str, passes: Sequence[Pass], losses: Sequence[float], norm: float) -> str:
        """Take down the samples of an update of this rank.

        :param event: what happened, one word.
        :param losses: the values of the passes' losses.
        :returns: the first samples and the file, to show.
        """
        rows: list[str] = []
        shown: list[str] = []
        for taken, loss in zip(passes, losses, strict=True):
            modality = taken.modality
            for sample in taken.ids.tolist():
                name = self._name_sample(modality, sample)
                rows.append(f"{step_nr}\t{event}\t{norm:g}\t{loss:g}\t{modality.value}\t{sample}\t{name}\n")
                shown.append(str(sample))

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            if file.tell() == 0:
                file.write(_HEADER)
            file.writelines(rows)

        more = f" and {len(shown) - _NUM_SHOWN} more" if len(shown) > _NUM_SHOWN else ""

        return f"{passes[0].modality.value} samples {', '.join(shown[:_NUM_SHOWN])}{more}, listed in {self.path}"
