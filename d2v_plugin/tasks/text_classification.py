"""Sentences and pairs of sentences with a class or a number: GLUE, and the user's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamples
from d2v_plugin.data.dataset import expect_dataset
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.order import RowBatch, WindowOrder, share_batch
from d2v_plugin.data.reader import LabelledReader, ReadBatch, TrainReader, batch_rows
from d2v_plugin.data.sentences import Sentences, TokenRows
from d2v_plugin.data.text import Vocabulary, pad_tokens
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.tasks.base import Task


@dataclass(kw_only=True)
class TextClassificationConfig:
    """Settings of ``text_classification``."""

    split: str = "train"
    """The split to train on."""

    batch_size: int = 16
    """Samples per update, over all ranks."""

    max_batch_size: int | None = None
    """Most samples in one forward pass on one rank; more are accumulated. None = no limit."""

    max_length: int = 512
    """Longest sample in tokens, ``<s>`` and separators included. Of a longer one the end is dropped, of a pair the end of the
    longer sentence."""

    length_window: int = 50
    """The samples of an update are of similar length, found among those of this many updates; 1 = random, as in fairseq."""

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise ValueError(f"`max_length` must be at least 8, but is {self.max_length}.")
        if self.length_window < 1:
            raise ValueError(f"`length_window` must be at least 1, but is {self.length_window}.")


class TextClassificationTask(Task):
    """Reads a dataset of the family ``sentences``."""

    modality = Modality.TEXT

    def __init__(self, config: TextClassificationConfig) -> None:
        self.config = config
        self._vocabulary: Vocabulary | None = None

    @override
    def read_labels(self, dataset: object) -> LabelSet | None:
        sentences = expect_dataset(dataset, Sentences)

        return None if sentences.layout.numbers else LabelSet(sentences.class_names)

    @override
    def check_model(self, model: EncoderModel) -> None:
        text = getattr(getattr(model, "config", None), "text", None)
        if text is None:
            raise RecipeError("The model does not read text; choose one that does, or another task.")
        if self._vocabulary is not None and self._vocabulary.size != text.vocab_size:
            raise RecipeError(
                f"The vocabulary of the dataset has {self._vocabulary.size:,} ids, but the model has {text.vocab_size:,}. Set "
                "`dataset.config_overrides.vocabulary` to the one that the model was pre-trained with."
            )
        if self.config.max_length > text.max_positions:
            raise RecipeError(
                f"`task.config.max_length` is {self.config.max_length}, but the model has positions for {text.max_positions} "
                "tokens only; lower it."
            )

    @override
    def create_train_reader(self, dataset: object, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config = self.config
        share = share_batch(config.batch_size, config.max_batch_size, rank=gangs.dp.rank, world_size=gangs.dp.size)
        rows, labels, bad_samples = self._encode(expect_dataset(dataset, Sentences), config.split)
        if labels is None:
            raise RecipeError(f"The split `{config.split}` has no labels; nothing can be learned from it.")
        order = WindowOrder(rows.lengths, config.batch_size, config.length_window, seed)

        return TrainReader(order, share, _create_read(rows, labels), gangs, bad_samples)

    @override
    def create_labelled_reader(self, dataset: object, gangs: Gangs, split: str) -> DataReader[Batch]:
        """Longest samples first; a split without labels gives batches without them."""
        rows, labels, bad_samples = self._encode(expect_dataset(dataset, Sentences), split)
        batch_size = self.config.max_batch_size or max(1, self.config.batch_size // gangs.dp.size)
        longest_first = np.argsort(-rows.lengths, kind="stable")

        return LabelledReader(batch_rows(longest_first, batch_size), _create_read(rows, labels), gangs, bad_samples)

    def _encode(self, sentences: Sentences, split: str) -> tuple[TokenRows, Tensor | None, BadSamples]:
        table = sentences.split(split)
        self._vocabulary = sentences.tokenizer.vocabulary
        labels = sentences.read_targets(split, self.labels or self.read_labels(sentences))
        rows = sentences.encode(split, self.config.max_length)
        if rows.num_cut:
            log.info("{:,} of the {:,} samples of `{}` are longer than `max_length` and cut.", rows.num_cut, len(table), split)

        # Everything was read already: nothing can go wrong with a sample.
        return rows, labels, BadSamples(table.path, len(table), BadSampleConfig(), self.bad_samples_report)


def _create_read(rows: TokenRows, labels: Tensor | None) -> ReadBatch:
    def read(batch: RowBatch) -> Batch:
        inputs, padding_mask, min_length = pad_tokens([rows[row] for row in batch.rows.tolist()])
        ids = torch.from_numpy(batch.rows.copy())

        return Batch(Modality.TEXT, inputs, ids, padding_mask, min_length, None if labels is None else labels[ids])

    return read
