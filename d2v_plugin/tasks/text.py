"""Text: pre-training batches, and labelled ones for probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import Spell
from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamples
from d2v_plugin.data.dataset import TextManifest, expect_dataset
from d2v_plugin.data.order import RowBatch, SampleOrder, share_batch
from d2v_plugin.data.reader import LabelledReader, ReadBatch, TrainReader, batch_rows, read_samples
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.data.text import SENTENCEPIECE_FILE, BreakMode, TokenIds, Tokenizer, TokenStream, cut_blocks, pad_tokens
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
    def read_spelling(self, dataset: object) -> Spell | None:
        path = expect_dataset(dataset, TextManifest).path / SENTENCEPIECE_FILE

        return Tokenizer(path).pieces if path.is_file() else None

    @override
    def create_train_reader(self, dataset: object, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config = self.config
        texts = expect_dataset(dataset, TextManifest)
        share = share_batch(config.batch_size, config.max_batch_size, rank=gangs.dp.rank, world_size=gangs.dp.size)
        stream = TokenStream(texts.split(config.split), texts.vocabulary)
        starts, ends = cut_blocks(stream, config.tokens_per_sample - 1, config.break_mode)
        bad_samples = BadSamples(texts.split(config.split).path, len(starts), config.bad_samples, self.bad_samples_report)

        def name_block(row: int) -> str:
            return f"tokens {starts[row]} to {ends[row]}"

        read = _create_read(stream, starts, ends, bad_samples, name_block, labels=None)

        return TrainReader(SampleOrder(len(starts), seed), share, read, gangs, bad_samples, name=name_block)

    @override
    def create_labelled_reader(self, dataset: object, gangs: Gangs, split: str) -> DataReader[Batch]:
        """Every row of the manifest is a sample."""
        texts = expect_dataset(dataset, TextManifest)
        manifest, labels = texts.split(split), texts.read_labels(split)
        stream = TokenStream(manifest, texts.vocabulary)
        bad_samples = BadSamples(manifest.path, len(manifest), self.config.bad_samples, self.bad_samples_report)
        starts, ends = stream.row_bounds(self.config.tokens_per_sample - 1)
        read = _create_read(stream, starts, ends, bad_samples, manifest.name_of, labels)
        batch_size = self.config.max_batch_size or max(1, self.config.batch_size // gangs.dp.size)

        return LabelledReader(batch_rows(np.arange(len(labels)), batch_size), read, gangs, bad_samples)

    @override
    def open_rows(self, dataset: object, split: str) -> RowReader:
        """Rows that are ranges of bytes are samples; whole files are cut into blocks, as for training."""
        config = self.config
        texts = expect_dataset(dataset, TextManifest)
        manifest, most = texts.split(split), config.tokens_per_sample - 1
        stream = TokenStream(manifest, texts.vocabulary)
        are_samples = all(manifest.location(row).size is not None for row in range(len(manifest)))
        if are_samples:
            starts, ends = stream.row_bounds(most)
            if cut := int((manifest.integers("tokens") > most).sum()):
                log.warning("{:,} of {:,} samples are longer than `tokens_per_sample` and are cut off.", cut, len(manifest))
        else:
            starts, ends = cut_blocks(stream, most, config.break_mode)
        bad_samples = BadSamples(manifest.path, len(starts), config.bad_samples, self.bad_samples_report)

        def name_sample(row: int) -> str:
            return manifest.name_of(row) if are_samples else f"tokens {starts[row]} to {ends[row]}"

        read = _create_read(stream, starts, ends, bad_samples, name_sample, labels=None)
        samples = "rows of the manifest" if are_samples else f"blocks of at most {config.tokens_per_sample} tokens"

        return RowReader(manifest.path, ends - starts + 1, None, bad_samples, read, samples)


def _create_read(
    stream: TokenStream,
    starts: TokenIds,
    ends: TokenIds,
    bad_samples: BadSamples,
    name: Callable[[int], str],
    labels: Tensor | None,
) -> ReadBatch:
    def read_checked(row: int, epoch: int) -> TokenIds:
        return stream.read(int(starts[row]), int(ends[row]))

    def read(batch: RowBatch) -> Batch | None:
        rows = batch.rows
        firsts, lasts = starts[rows], ends[rows]
        padded = pad_tokens(stream.view(firsts, lasts)) if (firsts < lasts).all() else None
        if padded is None or int(padded[0].max()) >= stream.vocabulary.size:
            # Some are bad: only now is it worth the time to look at each.
            samples, found = read_samples(batch, name, bad_samples, read_checked)
            if not samples:
                return None
            rows, padded = np.array(found), pad_tokens(samples)
        inputs, padding_mask, min_length = padded
        ids = torch.from_numpy(rows.copy())

        return Batch(Modality.TEXT, inputs, ids, padding_mask, min_length, None if labels is None else labels[ids])

    return read
