"""TensorBoard: metrics under ``group/name``, the configuration as text, and its settings as hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from fairseq2.error import OperationalError, raise_operational_system_error
from fairseq2.metrics.recorders import MetricRecorder
from typing_extensions import override

from d2v_plugin.training.recorders.configuration import Configuration
from d2v_plugin.training.recorders.names import flatten

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LOSS: Final = "train/loss"

# TensorBoard sorts groups by name, unfolds the first, and cannot be told otherwise: one more curve is a group of that name.
_FIRST: Final = "loss"


@final
class TensorBoardRecorder(MetricRecorder):
    """Writes metrics to one folder, so that a run is one curve in each diagram."""

    def __init__(self, folder: Path, configuration: Configuration) -> None:
        self._folder = folder
        self._configuration = configuration
        self._writer: SummaryWriter | None = None

    @override
    def record_metric_values(self, category: str, values: Mapping[str, object], step_nr: int | None = None) -> None:
        try:
            self._writer = self._writer or self._open(step_nr)
            for name, value in flatten(category, values):
                if isinstance(value, str):
                    self._writer.add_text(name.tag, value, step_nr)
                    continue
                self._writer.add_scalar(name.tag, value, step_nr)
                if name.tag == _LOSS:
                    self._writer.add_scalar(_FIRST, value, step_nr)
            self._writer.flush()
        except OSError as ex:
            raise_operational_system_error(ex)
        except RuntimeError as ex:
            raise OperationalError("Metric values cannot be saved to TensorBoard.") from ex

    def _open(self, step_nr: int | None) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # A run that goes on from a checkpoint does not show updates that were lost after it.
        writer = SummaryWriter(self._folder, purge_step=step_nr)
        writer.add_text("configuration", f"```yaml\n{self._configuration.text}```", step_nr)
        if self._configuration.is_training:
            # The tab of custom scalars begins with what one wants to see first.
            layout = {
                "learning": {"loss": ["Multiline", [f"^{_LOSS}$"]], "scores": ["Multiline", ["^probe/[^/]*$", "^valid/[^/]*$"]]}
            }
            writer.add_custom_scalars(layout)
            scores = (_LOSS, *self._configuration.scores)
            assert writer.file_writer is not None
            for summary in hparams(self._configuration.settings(), dict.fromkeys(scores, 0.0)):
                writer.file_writer.add_summary(summary)

        return writer

    @override
    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
