"""Extraction recipe: a checkpoint and a manifest become shards of features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from fairseq2.gang import Gangs
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task as Runnable
from fairseq2.task import TaskStopException
from fairseq2.utils.structured import StandardValueConverter
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.log import log
from d2v_plugin.core.remote import place
from d2v_plugin.core.secrets import hide_in, hide_in_data
from d2v_plugin.core.storage import hash_file
from d2v_plugin.core.text import print_unwrapped
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.extraction.chunks import SAMPLE_RATE, estimate_memory, estimate_shard, find_free_memory
from d2v_plugin.extraction.features import Extractor, name_arrays
from d2v_plugin.extraction.shards import INDEX_FILE, STORES, FeatureStore, ShardRange, begin_index, cut_shards, finish_index
from d2v_plugin.verbs.common import CheckpointRecipe, RecipeTask, hash_weights, open_task
from d2v_plugin.verbs.extract.config import ExtractConfig
from d2v_plugin.weights.loading import load
from d2v_plugin.weights.run_folder import RunFolder

CPU: Final = torch.device("cpu")


@final
class ExtractRecipe(CheckpointRecipe):
    """Writes the features of a split; any number of processes writes the same shards."""

    config_kls = ExtractConfig

    @override
    def create_task(self, context: RecipeContext) -> Runnable:
        config, section = context.get_config_as(ExtractConfig), context.get_config_as(ExtractConfig).features

        # Data first: a missing split is known before a large model is read.
        task = open_task(context, config.task)
        rows = task.open_rows(config.split)

        path = config.checkpoint.choose()
        model = load(path, weights=config.checkpoint.weights, device=context.device)
        task.check_model(model, ())
        extra = getattr(model.config.frontends.get(task.modality), "num_extra_tokens", 0)
        if section.pooling == "cls" and task.modality is Modality.AUDIO and not extra:
            raise RecipeError("`features.pooling` must not be cls for a model of sound without a class token; choose mean.")
        try:
            arrays = name_arrays(section.layers, section.top_k, model.num_layers)
        except ValueError as ex:
            raise RecipeError(f"`features`: {ex}") from ex
        dtype: torch.dtype = getattr(torch, section.dtype)
        rate = getattr(getattr(task.config, "audio", None), "sample_rate", SAMPLE_RATE)
        extractor = Extractor(model, arrays, section.pooling, dtype, context.device, section.amp, section.chunk_seconds, rate)
        if task.modality is Modality.AUDIO:
            check_memory(extractor, rows, section.shard_size)
        settings = {
            "checkpoint": hide_in(str(place(path).absolute()) if place(path).exists() else str(path)),
            "weights": config.checkpoint.weights,
            "weights_hash": hash_weights(model),
            "manifest": str(rows.manifest.absolute()),
            "manifest_hash": hash_file(rows.manifest),
            "task": hide_in_data(StandardValueConverter().unstructure(config.task)),
            "samples": rows.samples,
            "arrays": arrays,
            **{name: getattr(section, name) for name in ("pooling", "dtype", "format", "shard_size", "amp")},
        }
        if section.chunk_seconds is not None:
            settings["chunk_seconds"] = section.chunk_seconds
        info = {"model": StandardValueConverter().unstructure(model.config)}

        return ExtractTask(rows, extractor, context.output_dir, settings, info, context.gangs, section.batch_size)


@final
@dataclass(eq=False)
class ExtractTask(RecipeTask):
    """Writes the shards of one rank that are not there yet."""

    rows: RowReader
    extractor: Extractor
    output_dir: Path

    settings: Mapping[str, Any]
    """All that the features depend on, as plain data."""

    info: Mapping[str, Any]
    """Further sections of the index."""

    gangs: Gangs
    batch_size: int

    @override
    @torch.inference_mode()
    def run(self) -> None:
        rank, size = self.gangs.root.rank, self.gangs.root.size
        begin_index(self.output_dir, self.settings, write=rank == 0)
        self.gangs.root.barrier()

        store: FeatureStore = STORES[self.settings["format"]](RunFolder(self.output_dir).features)
        shards = cut_shards(len(self.rows), self.settings["shard_size"])
        todo = store.find_missing(shards[rank::size], "shards")
        readers = self.rows.read_ranges([(shard.start, shard.stop) for shard in todo], self.batch_size)
        with ThreadPoolExecutor(1) as writer:
            written: Future[None] | None = None
            for shard, batches in zip(todo, readers, strict=True):
                if self.stop_requested:
                    raise TaskStopException()
                content = self.extractor.compute(_finish(batches, written))
                written = writer.submit(self._write, store, shard, content, len(todo))
                del content
            if written is not None:
                written.result()

        # The rank that finishes last writes the index; no barrier, so no timeout.
        if all(store.has(shard) for shard in shards):
            num_samples = finish_index(self.output_dir, self.settings, self.info, store, shards)
            print_unwrapped(f"\n{num_samples:,} of {len(self.rows):,} samples in {len(shards):,} shards.\n")
            print_unwrapped(f"features:  {store.folder}\nindex:     {self.output_dir / INDEX_FILE}")
        self.gangs.close()

    def _write(self, store: FeatureStore, shard: ShardRange, content: Mapping[str, Tensor], num_shards: int) -> None:
        store.write(shard, content)
        self.num_steps += 1
        log.info("Wrote {} ({:,} of {:,}).", store.path_of(shard), self.num_steps, num_shards)


def _finish(batches: Iterable[Batch], written: Future[None] | None) -> Iterator[Batch]:
    """Batches of a shard; at their end the shard before is written: of frames there are never more than two shards in memory."""
    yield from batches
    if written is not None:
        written.result()


def check_memory(extractor: Extractor, rows: RowReader, shard_size: int) -> None:
    """Say in advance if speech takes more than half of the memory that is free: a shard's frames, the longest recording's pass.

    :raises RecipeError: it takes more than there is.
    """
    longest, device, kept = int(rows.lengths.max(initial=0)), extractor.device, 0
    if extractor.pooling == "none":
        kept = estimate_shard(extractor.model, rows.lengths, shard_size, len(extractor.arrays), extractor.dtype)
        what = f"A shard of {rows.manifest} (`features.shard_size` is {shard_size:,}; {len(extractor.arrays)} arrays)"
        _compare_memory(what, kept, find_free_memory(CPU), "a lower `features.shard_size`, fewer `layers` or `pooling`")
    if extractor.chunk_samples is not None:
        longest = min(longest, extractor.chunk_samples)
    free = find_free_memory(device)
    if free is not None and device.type == "cpu":
        free -= kept
    what = f"The longest recording of {rows.manifest} ({longest / extractor.sample_rate / 60:.1f} minutes)"
    if extractor.chunk_seconds is not None:
        what = f"A chunk of {longest / extractor.sample_rate:.0f} seconds of {rows.manifest}"
    _compare_memory(what, estimate_memory(extractor.model, longest), free, "`features.chunk_seconds`, 60 for example")


def _compare_memory(what: str, needed: int, free: int | None, remedy: str) -> None:
    if free is None or needed <= free / 2:
        return
    message = f"{what} takes about {needed / 1e9:.1f} GB of memory, of which {max(free, 0) / 1e9:.1f} GB are free"
    if needed > free:
        raise RecipeError(f"{message}. Set {remedy}.")
    log.warning("{}; with {} it takes less.", message, remedy)
