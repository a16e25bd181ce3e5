"""Incidents: updates that went wrong, with their samples in a file for each rank, in which they can be looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, final

from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.appended_file import AppendedFile
from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput
from d2v_plugin.core.log import log
from d2v_plugin.training.observers import Observer
from d2v_plugin.weights.run_folder import RunFolder

NameSample = Callable[[Modality, int], str]
"""Tells where a sample comes from, given its id."""

_HEADER: Final = "step\tevent\tgradient_norm\tloss\tmodality\tid\tsample\n"
_NUM_SHOWN: Final = 8

MAX_SKIPPED_IN_A_ROW: Final = 3


class ForwardPass(NamedTuple):
    """Samples of a forward pass of one rank."""

    modality: Modality
    ids: Tensor
    """(N,)"""


@final
class Incidents(Observer):
    """Log of incidents, ``suspects/rank_N.tsv`` of a run: one row for each sample of a reported update."""

    def __init__(self, output_dir: Path, rank: int, name_sample: NameSample) -> None:
        self.path = RunFolder(output_dir).suspects / f"rank_{rank}.tsv"
        self._file = AppendedFile(self.path, _HEADER)
        self.pattern = RunFolder(output_dir).suspects / "rank_*.tsv"
        self._name_sample = name_sample
        self._passes: list[ForwardPass] = []

    @override
    def before_update(self, step_nr: int) -> None:
        self._passes = []

    @override
    def after_forward(self, batch: Batch, output: LossOutput) -> None:
        self._passes.append(ForwardPass(batch.modality, batch.ids))

    def add(self, step_nr: int, event: str, *, norm: float, losses: Sequence[float]) -> str:
        """Write down the samples of the update that was just done, or skipped.

        :param event: what happened, one word.
        :param losses: of this rank's passes.
        :returns: the first samples and the file, to show.
        """
        rows: list[str] = []
        shown: list[str] = []
        for (modality, ids), loss in zip(self._passes, losses, strict=True):
            for sample in ids.tolist():
                name = self._name_sample(modality, sample)
                rows.append(f"{step_nr}\t{event}\t{norm:g}\t{loss:g}\t{modality.value}\t{sample}\t{name}\n")
                shown.append(str(sample))

        self._file.add("".join(rows))
        more = f" and {len(shown) - _NUM_SHOWN} more" if len(shown) > _NUM_SHOWN else ""

        return f"{self._passes[0].modality.value} samples {', '.join(shown[:_NUM_SHOWN])}{more}, listed in {self.path}"


@final
class SkipObserver(Observer):
    """Reports skipped updates; three in a row end the run."""

    def __init__(self, incidents: Incidents) -> None:
        self._incidents = incidents
        self._in_a_row: list[int] = []

    @override
    def after_update(self, step_nr: int, *, norm: float, losses: Sequence[float], skipped: bool) -> None:
        """:raises RecipeError: this was the third in a row."""
        if not skipped:
            self._in_a_row = []
            return

        self._in_a_row.append(step_nr)
        listed = self._incidents.add(step_nr, "not_finite", norm=norm, losses=losses)
        log.warning(
            f"Skipped update {step_nr}, {len(self._in_a_row)} in a row; {MAX_SKIPPED_IN_A_ROW} end the run: "
            f"gradient norm {norm:g}, loss of this rank {sum(losses) / len(losses):g}; {listed}."
        )
        if len(self._in_a_row) == MAX_SKIPPED_IN_A_ROW:
            raise RecipeError(
                f"A loss or gradient is not finite at step {step_nr}, as in every step since {self._in_a_row[0]}: "
                f"{MAX_SKIPPED_IN_A_ROW} in a row, none of which was done. Their samples are listed in "
                f"{self._incidents.pattern}. Lower `optimizer.config.lr`, lengthen the warm-up or set `trainer.max_grad_norm`; "
                "the same command continues from the last checkpoint."
            )
