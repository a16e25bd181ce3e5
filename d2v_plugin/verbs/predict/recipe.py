"""Prediction recipe: a fine-tuned model and files become transcripts, classes, tags or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from fairseq2.gang import Gangs
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task as Runnable
from fairseq2.task import TaskStopException
from fairseq2.utils.progress import ProgressReporter
from fairseq2.utils.structured import StandardValueConverter
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.log import log
from d2v_plugin.core.registry import create
from d2v_plugin.core.remote import place
from d2v_plugin.core.secrets import hide_in, hide_in_data
from d2v_plugin.core.text import print_unwrapped
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.bad_samples import BadSamplesError
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.extraction.shards import ShardRange, begin_index, cut_shards, write_index
from d2v_plugin.inference.engine import Engine, SampleBatches, answer_rows
from d2v_plugin.inference.model import find_frame_seconds
from d2v_plugin.inference.parts import JSON_FILE, TABLE_FILE, LineStore, format_fault, format_result, join_parts
from d2v_plugin.inference.reading import Reader, TextReader, find_samples
from d2v_plugin.inference.results import Presenter
from d2v_plugin.inference.samples import Samples
from d2v_plugin.inference.settings import InputSettings, list_vocabularies
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.tasks.base import Task
from d2v_plugin.verbs.common import CheckpointRecipe, RecipeTask, hash_weights
from d2v_plugin.verbs.predict.config import PredictConfig
from d2v_plugin.weights.provenance import Provenance
from d2v_plugin.weights.run_folder import RunFolder
from d2v_plugin.weights.sources import find_provenance

_WHAT = "predictions"


@final
class PredictRecipe(CheckpointRecipe):
    """Predicts files; any number of processes writes the same."""

    config_kls = PredictConfig

    @override
    def create_task(self, context: RecipeContext) -> Runnable:
        config, section = context.get_config_as(PredictConfig), context.get_config_as(PredictConfig).prediction
        path = config.checkpoint.choose()
        provenance = find_provenance(path)
        criterion = None if config.criterion is None else create(context.resolver, Criterion, config.criterion)
        if provenance is None or not isinstance(criterion, SupervisedCriterion):
            raise RecipeError(f"{path} has no head that predicts anything; `fairseq2 recipe extract` writes its features.")
        model = load_trained(path, criterion, labels=provenance.labels, device=context.device)

        reader = open_reader(context, model, provenance, path)
        samples = find_samples([place(item) for item in config.listed_inputs], reader)
        settings = {
            "checkpoint": hide_in(str(place(path).absolute()) if place(path).exists() else str(path)),
            "weights_hash": hash_weights(model),
            **{name: hide_in_data(StandardValueConverter().unstructure(getattr(config, name))) for name in ("task", "criterion")},
            "inputs": [str(place(item).absolute()) for item in config.listed_inputs],
            "inputs_hash": samples.hash(),
            **{name: getattr(section, name) for name in ("top_k", "threshold", "chunk_seconds", "part_size", "amp")},
        }
        presenter = Presenter(criterion, find_frame_seconds(model, reader), section.top_k, section.threshold)
        engine = Engine(model, criterion, context.device, section.chunk_seconds, section.amp, reader.sample_rate)

        return PredictTask(
            SampleBatches(samples, reader, section.batch_size),
            engine,
            presenter,
            context.output_dir,
            settings,
            context.gangs,
            context.progress_reporter,
        )


def open_reader(context: RecipeContext, model: EncoderModel, provenance: Provenance, path: str | Path) -> Reader:
    """What reads the inputs of a model, by the settings of its run and of the command line.

    :raises RecipeError: it cannot; says why.
    """
    config = context.get_config_as(PredictConfig)
    assert config.task is not None
    task = create(context.resolver, Task, config.task)
    dataset: Mapping[str, Any] = (getattr(config.dataset, "config_overrides", None) or {}) if config.dataset else {}
    known = (provenance.sections["dataset"] or {}).get("config_overrides") or {}
    # A vocabulary that the user names counts before that of the checkpoint, and that before the run's, which may be elsewhere.
    named = dataset.get("vocabulary")
    own = place(named) if named is not None and str(named) != str(known.get("vocabulary")) else None
    folder = place(path) if place(path).is_dir() else None
    settings = InputSettings(task, dataset, list_vocabularies(dataset, own, folder))

    return settings.open_reader(model, task.modality if isinstance(task.modality, Modality) else Modality(task.modality))


@final
@dataclass(eq=False)
class PredictTask(RecipeTask):
    """Writes the parts of one rank that are not there yet; the last rank makes the files of them."""

    batches: SampleBatches
    engine: Engine
    presenter: Presenter
    output_dir: Path

    settings: Mapping[str, Any]
    """All that the predictions depend on, as plain data."""

    gangs: Gangs
    progress: ProgressReporter

    @override
    @torch.inference_mode()
    def run(self) -> None:
        rank, size = self.gangs.root.rank, self.gangs.root.size
        begin_index(self.output_dir, self.settings, write=rank == 0, what=_WHAT)
        self.gangs.root.barrier()

        store = LineStore(RunFolder(self.output_dir).parts)
        shards = cut_shards(len(self.samples), self.settings["part_size"])
        todo = store.find_missing(shards[rank::size], "parts")
        total = sum(shard.stop - shard.start for shard in todo)
        with self.progress, self.progress.create_task("predict", total=total) as bar:
            for shard in todo:
                lines = self._predict(shard, bar.step)
                store.write(shard, lines)
                self.num_steps += 1
        self._report_cut()

        # The rank that finishes last writes the files; no barrier, so no timeout.
        if all(store.has(shard) for shard in shards):
            self._finish(store, shards)
        self.gangs.close()

    @property
    def samples(self) -> Samples:
        """What is predicted."""
        return self.batches.samples

    def _predict(self, shard: ShardRange, count: Any) -> Sequence[str]:
        """The lines of a part, by row."""
        lines: dict[int, str] = {}
        for row, answer in answer_rows(self.batches, self.engine, shard.start, shard.stop):
            if self.stop_requested:
                raise TaskStopException()
            lines[row] = format_result(row, self.presenter.present(answer, self.samples.place_of(row)))
            count(1)
        for row in range(shard.start, shard.stop):
            if row not in lines:
                lines[row] = format_fault(row, self.samples.place_of(row), self.batches.faults.pop(row))
                count(1)

        return [lines[row] for row in sorted(lines)]

    def _report_cut(self) -> None:
        reader = self.batches.reader
        if isinstance(reader, TextReader) and (cut := sorted(reader.reading.cut)):
            message = "{:,} sample(s) are longer than {} tokens and were cut, such as {}."
            log.warning(message, len(cut), reader.reading.max_length, cut[0])

    def _finish(self, store: LineStore, shards: Sequence[ShardRange]) -> None:
        """
        :raises BadSamplesError: nothing could be read.
        """
        folder = RunFolder(self.output_dir)
        counts = join_parts(store, shards, self.output_dir, folder.bad_samples)
        found = {"num_predicted": counts.predicted, "num_bad": counts.bad}
        write_index(self.output_dir, {"complete": True, **found, "settings": self.settings}, what=_WHAT)
        if not counts.predicted:
            raise BadSamplesError(f"None of {counts.bad:,} input(s) can be read: {counts.first_fault}")
        print_unwrapped(f"\n{counts.predicted:,} of {len(self.samples):,} samples.\n")
        print_unwrapped(f"predictions:  {self.output_dir / JSON_FILE}\ntable:        {self.output_dir / TABLE_FILE}")
        if counts.bad:
            print_unwrapped(f"left out:     {folder.bad_samples} ({counts.bad:,}, such as {counts.first_fault})")
