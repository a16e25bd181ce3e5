"""Sentences and pairs of sentences with a class or a number: GLUE, and the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.log import log
from d2v_plugin.core.ranges import PositiveInt, Range
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamples
from d2v_plugin.data.batches import ReadBatch, batch_rows, make_batch
from d2v_plugin.data.labels import LabelKind, LabelSet, RowLabels
from d2v_plugin.data.order import LengthOrder, Order, RowBatch, WindowOrder, share_batch
from d2v_plugin.data.reader import LabelledReader, TrainReader
from d2v_plugin.data.sentences import Sentences
from d2v_plugin.data.text import TokenIds, pad_tokens
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.tasks.base import Task


@dataclass(kw_only=True)
class TextClassificationConfig(Checked):
    """Settings of ``text_classification``."""

    split: str = "train"
    """The split to train on."""

    batch_size: PositiveInt = 16
    """Samples per update, over all ranks."""

    max_batch_size: PositiveInt | None = None
    """Most samples in one forward pass on one rank; more are accumulated. None = no limit."""

    max_num_tokens: PositiveInt | None = None
    """Most tokens of a forward pass on one rank, padding included: long samples come in smaller batches, as in fairseq. Samples
    of a batch are of similar length then, whatever ``length_window`` is. None = no limit."""

    max_length: Annotated[int, Range(">= 8")] = 512
    """Longest sample in tokens, ``<s>`` and separators included. Of a longer one the end is dropped, of a pair the end of the
    longer sentence."""

    length_window: PositiveInt = 50
    """The samples of an update are of similar length, found among those of this many updates; 1 = random, as in fairseq."""

    @override
    def validate(self) -> ValidationResult:
        return report(
            (
                self.max_num_tokens is not None and self.max_num_tokens < self.max_length,
                f"`max_num_tokens` must be at least `max_length` ({self.max_length}) or null, but is {self.max_num_tokens}.",
            ),
            base=super().validate(),
        )


class TextClassificationTask(Task[TextClassificationConfig, Sentences]):
    """Reads a dataset of the family ``sentences``."""

    modality = Modality.TEXT
    family = Sentences

    @property
    @override
    def label_kind(self) -> LabelKind:
        return "numbers" if self.dataset.layout.numbers else "classes"

    @override
    def _read_labels(self) -> LabelSet | None:
        return None if self.dataset.layout.numbers else LabelSet(self.dataset.class_names)

    @override
    def check_model(self, model: EncoderModel, splits: Iterable[str] | None = None) -> None:
        super().check_model(model, splits)
        text, vocabulary = model.config.frontends[Modality.TEXT], self.dataset.tokenizer.vocabulary
        if vocabulary.size != text.vocab_size:
            raise RecipeError(
                f"The vocabulary of the dataset has {vocabulary.size:,} ids, but the model has {text.vocab_size:,}. Set "
                "`dataset.config_overrides.vocabulary` to the one that the model was pre-trained with."
            )
        if self.config.max_length > text.max_positions:
            raise RecipeError(
                f"`task.config.max_length` is {self.config.max_length}, but the model has positions for {text.max_positions} "
                "tokens only; lower it."
            )

    @override
    def create_train_reader(self, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config = self.config
        share = share_batch(config.batch_size, config.max_batch_size, rank=gangs.dp.rank, world_size=gangs.dp.size)
        lengths, read, bad_samples = self._open_sentences(config.split)
        table = self.dataset.split(config.split)
        if table.labels is None:
            raise RecipeError(f"The split `{config.split}` has no labels; nothing can be learned from it.")
        order: Order = WindowOrder(lengths, config.batch_size, config.length_window, seed)
        if config.max_num_tokens is not None:
            order = LengthOrder(np.arange(len(lengths)), lengths, config.max_num_tokens, seed, max_batch_size=share.items)
            share = replace(share, items=1)
        return TrainReader(order, share, gangs, read, bad_samples, data_hash=table.hash_rows())

    @override
    def create_labelled_reader(self, gangs: Gangs, split: str) -> DataReader[Batch]:
        """Longest samples first; a split without labels gives batches without them."""
        lengths, read, bad_samples = self._open_sentences(split)
        batch_size = self.config.max_batch_size or max(1, self.config.batch_size // gangs.dp.size)
        longest_first = np.argsort(-lengths, kind="stable")
        return LabelledReader(batch_rows(longest_first, batch_size), gangs, read, bad_samples)

    @override
    def locate(self, split: str, row: int) -> str:
        table = self.dataset.split(split)
        return f"{os.path.abspath(table.path)}:{table.name_of(row)}"

    def _open_sentences(self, split: str) -> tuple[TokenIds, ReadBatch, BadSamples]:
        """Encode a split; returns the lengths of its rows, too."""
        table = self.dataset.split(split)
        labels = self.dataset.read_targets(split, self.labels)
        targets = None if labels is None else RowLabels(labels)
        rows = self.dataset.encode(split, self.config.max_length)
        if rows.num_cut:
            log.info("{:,} of the {:,} samples of `{}` are longer than `max_length` and cut.", rows.num_cut, len(table), split)

        def read(batch: RowBatch) -> Batch:
            found = batch.rows.tolist()
            return make_batch(Modality.TEXT, pad_tokens([rows[row] for row in found]), found, targets)

        # Everything was read already: nothing can go wrong with a sample.
        return rows.lengths, read, BadSamples(table.path, len(table), table.name_of, BadSampleConfig(), self.report)
