"""Text: pre-training batches, and labelled ones for probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import override

from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamples
from d2v_plugin.data.batch import Batch, Modality
from d2v_plugin.data.dataset import TextManifest, expect_dataset
from d2v_plugin.data.order import RowBatch, SampleOrder, share_batch
from d2v_plugin.data.reader import LabelledReader, ReadBatch, TrainReader, batch_rows, read_samples
from d2v_plugin.data.text import BreakMode, Tokens, TokenStream, cut_blocks, pad_tokens
from d2v_plugin.tasks.base import Task


@dataclass(kw_only=True)
class TextPretrainingConfig:
    """Settings of ``text_pretraining``."""

    split: str = "train"
    """The manifest to train on."""

    batch_size: int = 64
    """Samples per update, over all ranks."""

    max_batch_size: int | None = None
    """Most samples in one forward pass on one rank; more are accumulated. None = no limit."""

    tokens_per_sample: int = 512
    """Length of a sample, the ``<s>`` at its beginning included."""

    break_mode: BreakMode = "none"
    """How the text is cut: ``none`` fills every sample (data2vec 2.0), ``complete_doc`` keeps lines whole and documents apart
    (data2vec 1.0), ``complete`` keeps lines whole, ``eos`` takes one line each."""

    bad_samples: BadSampleConfig = field(default_factory=BadSampleConfig)
    """How many damaged samples a run puts up with."""


class TextPretrainingTask(Task):
    """Reads a ``text_manifest``."""

    modality = Modality.TEXT

    def __init__(self, config: TextPretrainingConfig) -> None:
        if config.tokens_per_sample < 2:
            raise RecipeError(f"`tokens_per_sample` must be at least 2, but is {config.tokens_per_sample}.")
        self.config = config

    @override
    def create_train_reader(self, dataset: object, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config = self.config
        texts = expect_dataset(dataset, TextManifest)
        share = share_batch(config.batch_size, config.max_batch_size, rank=gangs.dp.rank, world_size=gangs.dp.size)
        stream = TokenStream(texts.split(config.split), texts.vocabulary)
        starts, ends = cut_blocks(stream, config.tokens_per_sample - 1, config.break_mode)
        bad_samples = BadSamples(texts.split(config.split).path, len(starts), config.bad_samples, self.bad_samples_report)

        def read_block(row: int, epoch: int) -> Tokens:
            return stream.read(int(starts[row]), int(ends[row]))

        def name_block(row: int) -> str:
            return f"tokens {starts[row]} to {ends[row]}"

        read = _create_read(read_block, bad_samples, name_block, labels=None)

        return TrainReader(SampleOrder(len(starts), seed), share, read, gangs, bad_samples)

    @override
    def create_labelled_reader(self, dataset: object, gangs: Gangs, split: str) -> DataReader[Batch]:
        """Every row of the manifest is a sample."""
        texts = expect_dataset(dataset, TextManifest)
        manifest, labels = texts.split(split), texts.read_labels(split)
        stream = TokenStream(manifest, texts.vocabulary)
        bad_samples = BadSamples(manifest.path, len(manifest), self.config.bad_samples, self.bad_samples_report)

        def read_row(row: int, epoch: int) -> Tokens:
            return stream.read_row(row, self.config.tokens_per_sample - 1)

        read = _create_read(read_row, bad_samples, manifest.name_of, labels)
        batch_size = self.config.max_batch_size or max(1, self.config.batch_size // gangs.dp.size)

        return LabelledReader(batch_rows(np.arange(len(labels)), batch_size), read, gangs, bad_samples)


def _create_read(
    read_tokens: Callable[[int, int], Tokens], bad_samples: BadSamples, name: Callable[[int], str], labels: Tensor | None
) -> ReadBatch:
    def read(batch: RowBatch) -> Batch | None:
        samples, rows = read_samples(batch, name, bad_samples, read_tokens)
        if not samples:
            return None
        inputs, padding_mask, min_length = pad_tokens(samples)
        ids = torch.tensor(rows)

        return Batch(Modality.TEXT, inputs, ids, padding_mask, min_length, None if labels is None else labels[ids])

    return read
