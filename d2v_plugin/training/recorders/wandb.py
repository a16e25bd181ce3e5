"""Weights & Biases: metrics by the names that TensorBoard has, of any version of wandb with ``Run.log``.

fairseq2 0.8.1 asks wandb for ``wandb.util.generate_id``, which is gone, and sends display names; the section of its settings,
``common.metric_recorders.wandb``, is used as it is.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final, final

import wandb
from fairseq2.metrics.recorders import MetricRecorder
from fairseq2.recipe.error import RecipeError
from typing_extensions import override

from d2v_plugin.core.log import log
from d2v_plugin.core.storage import write_atomically
from d2v_plugin.training.recorders.configuration import Configuration
from d2v_plugin.training.recorders.names import flatten

PERSISTENT: Final = "persistent"
ID_FILE: Final = "wandb_run_id"
"""In the output directory, where fairseq2 has it, too."""


def open_run(output_dir: Path, configuration: Configuration) -> wandb.Run:
    """Begin a run, or go on with the one of the output directory.

    Metrics and the configuration are all that is sent: no command line, environment, code, git state or output of the terminal,
    which may hold secrets.

    :raises RecipeError: wandb refuses, because nobody has logged in, for example.
    """
    section = configuration.sections["common"]["metric_recorders"]["wandb"]
    try:
        return wandb.init(
            entity=section["entity"],
            project=section["project"],
            dir=output_dir,
            id=_choose_id(section["run_id"], output_dir / ID_FILE),
            name=section["run_name"],
            config=dict(configuration.sections),
            group=section["group"],
            job_type=section["job_type"],
            resume=section["resume_mode"],
            settings=wandb.Settings(
                console="off", disable_code=True, disable_git=True, disable_job_creation=True, x_disable_meta=True, silent=True
            ),
        )
    except (wandb.Error, RuntimeError, ValueError, OSError) as ex:
        raise RecipeError(
            f"`common.metric_recorders.wandb`: {' '.join(str(ex).split())} Log in with `wandb login`, set WANDB_MODE=offline, or "
            "set `enabled` to false."
        ) from ex


def _choose_id(run_id: str | None, file: Path) -> str | None:
    """:returns: None = wandb takes that of ``WANDB_RUN_ID``, or a new one."""
    if run_id != PERSISTENT:
        return run_id
    if file.is_file():
        return file.read_text().strip()
    run_id = secrets.token_hex(4)
    write_atomically(file, run_id)

    return run_id


@final
class WandbRecorder(MetricRecorder):
    """Sends metrics."""

    def __init__(self, run: wandb.Run) -> None:
        self._run = run

    @override
    def record_metric_values(self, category: str, values: Mapping[str, object], step_nr: int | None = None) -> None:
        try:
            self._run.log({name.tag: value for name, value in flatten(category, values)}, step=step_nr)
        except (wandb.Error, RuntimeError, OSError) as ex:
            log.warning("W&B did not take the metrics of update {}: {}", step_nr, ex)

    @override
    def close(self) -> None:
        self._run.finish()
