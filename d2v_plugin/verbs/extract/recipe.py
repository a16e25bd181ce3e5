"""The extraction recipe: a checkpoint and a manifest become shards of features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task as Runnable
from fairseq2.task import TaskStopException
from fairseq2.utils.structured import StandardValueConverter
from torch import nn
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.registry import create
from d2v_plugin.core.storage import hash_file
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.extraction.features import Extractor, name_arrays
from d2v_plugin.extraction.shards import INDEX_FILE, STORES, ShardStore, begin_index, cut_shards, finish_index
from d2v_plugin.tasks.base import Task
from d2v_plugin.verbs.common import choose_checkpoint
from d2v_plugin.verbs.extensions import ExtensibleRecipe
from d2v_plugin.verbs.extract.config import ExtractConfig
from d2v_plugin.weights.loading import load
from d2v_plugin.weights.run_folder import RunFolder


@final
class ExtractRecipe(ExtensibleRecipe):
    """Writes the features of a split; any number of processes writes the same shards."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return ExtractConfig

    @override
    def create_task(self, context: RecipeContext) -> Runnable:
        config, section = context.get_config_as(ExtractConfig), context.get_config_as(ExtractConfig).features
        assert config.checkpoint.path is not None and config.task is not None

        # Data first: a missing split is known before a large model is read.
        report = RunFolder(context.output_dir).bad_samples
        task = create(context.resolver, Task, config.task).open(context.get_dataset(), report=report)
        rows = task.open_rows(config.split)

        path = choose_checkpoint(config.checkpoint.path, best=config.checkpoint.best)
        model = load(path, weights=config.checkpoint.weights, device=context.device)
        if section.pooling == "cls" and task.modality is Modality.AUDIO:
            raise RecipeError("`features.pooling` must not be cls for speech, whose models have no class token; choose mean.")
        try:
            arrays = name_arrays(section.layers, section.top_k, model.num_layers)
        except ValueError as ex:
            raise RecipeError(f"`features`: {ex}") from ex
        dtype: torch.dtype = getattr(torch, section.dtype)
        extractor = Extractor(model, arrays, section.pooling, dtype, context.device, section.amp)
        settings = {
            "checkpoint": str(Path(path).absolute()) if Path(path).exists() else str(path),
            "weights": config.checkpoint.weights,
            "weights_hash": hash_weights(model),
            "manifest": str(rows.manifest.absolute()),
            "manifest_hash": hash_file(rows.manifest),
            "task": StandardValueConverter().unstructure(config.task),
            "samples": rows.samples,
            "arrays": arrays,
            **{name: getattr(section, name) for name in ("pooling", "dtype", "format", "shard_size", "amp")},
        }
        info = {"model": StandardValueConverter().unstructure(model.config)}

        return ExtractTask(rows, extractor, context.output_dir, settings, info, context.gangs, batch_size=section.batch_size)


@final
class ExtractTask(Runnable):
    """Writes the shards of one rank that are not there yet."""

    def __init__(
        self,
        rows: RowReader,
        extractor: Extractor,
        output_dir: Path,
        settings: Mapping[str, Any],
        info: Mapping[str, Any],
        gangs: Gangs,
        *,
        batch_size: int,
    ) -> None:
        """
        :param settings: all that the features depend on, as plain data.
        :param info: further sections of the index.
        """
        self._rows = rows
        self._extractor = extractor
        self._output_dir = output_dir
        self._settings = settings
        self._info = info
        self._gangs = gangs
        self._batch_size = batch_size
        self._store: ShardStore = STORES[settings["format"]](RunFolder(output_dir).features)
        self._shards = cut_shards(len(rows), settings["shard_size"])
        self._num_written = 0
        self._stop_requested = False

    @override
    @torch.inference_mode()
    def run(self) -> None:
        rank, size = self._gangs.root.rank, self._gangs.root.size
        begin_index(self._output_dir, self._settings, write=rank == 0)
        self._gangs.root.barrier()

        own = self._shards[rank::size]
        todo = [shard for shard in own if not self._store.has(shard)]
        log.info("{:,} shards, {:,} of them there already.", len(own), len(own) - len(todo))
        for shard in todo:
            if self._stop_requested:
                raise TaskStopException()
            arrays = self._extractor.compute(self._rows.read(shard.start, shard.stop, self._batch_size))
            self._store.write(shard, arrays)
            self._num_written += 1
            log.info("Wrote {} ({:,} of {:,}).", self._store.path_of(shard), self._num_written, len(todo))

        # Whichever rank ends last finds everything there; nobody waits, so no rank that is much faster runs into a timeout.
        if all(self._store.has(shard) for shard in self._shards):
            num_samples = finish_index(self._output_dir, self._settings, self._info, self._store, self._shards)
            # Not through the log, which breaks lines at the width of the terminal.
            print(f"\n{num_samples:,} of {len(self._rows):,} samples in {len(self._shards):,} shards.\n", flush=True)
            print(f"features:  {self._store.folder}\nindex:     {self._output_dir / INDEX_FILE}", flush=True)
        self._gangs.close()

    @override
    def request_stop(self) -> None:
        self._stop_requested = True

    @override
    def close(self) -> None:
        pass

    @property
    @override
    def step_nr(self) -> int:
        return self._num_written


def hash_weights(model: nn.Module) -> str:
    """Tells models apart."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)

    return digest.hexdigest()
