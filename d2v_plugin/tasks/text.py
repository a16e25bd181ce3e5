"""Text: pre-training batches, and labelled ones for probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import Spell
from d2v_plugin.core.log import log
from d2v_plugin.core.ranges import PositiveInt, Range
from d2v_plugin.core.validation import Checked
from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamples
from d2v_plugin.data.batches import ReadBatch, batch_rows, make_batch, read_samples
from d2v_plugin.data.blocks import BreakMode, cut_blocks
from d2v_plugin.data.dataset import TextManifest
from d2v_plugin.data.labels import LabelKind, RowLabels
from d2v_plugin.data.mixture import arrange
from d2v_plugin.data.order import RowBatch, share_batch
from d2v_plugin.data.reader import LabelledReader, TrainReader
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.data.text import SENTENCEPIECE_FILE, TokenIds, Tokenizer, TokenStream, pad_tokens
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.tasks.base import Task


@dataclass(kw_only=True)
class TextPretrainingConfig(Checked):
    """Settings of ``text_pretraining``."""

    split: str = "train"
    """The manifest to train on."""

    batch_size: PositiveInt = 64
    """Samples per update, over all ranks."""

    max_batch_size: PositiveInt | None = None
    """Most samples in one forward pass on one rank; more are accumulated. None = no limit."""

    tokens_per_sample: Annotated[int, Range(">= 2")] = 512
    """Length of a sample, the ``<s>`` at its beginning included."""

    break_mode: BreakMode = "none"
    """How the text is cut: ``none`` fills every sample (data2vec 2.0), ``complete_doc`` keeps lines whole and documents apart
    (data2vec 1.0), ``complete`` keeps lines whole, ``eos`` takes one line each."""

    bad_samples: BadSampleConfig = field(default_factory=BadSampleConfig)
    """How many damaged samples a run puts up with."""


class TextPretrainingTask(Task[TextPretrainingConfig, TextManifest]):
    """Reads a ``text_manifest``."""

    modality = Modality.TEXT
    family = TextManifest

    @property
    @override
    def label_kind(self) -> LabelKind:
        return "no labels"

    @property
    @override
    def has_fixed_shapes(self) -> bool:
        return self.config.break_mode == "none"

    @override
    def read_spelling(self) -> Spell | None:
        path = self.dataset.path / SENTENCEPIECE_FILE
        return Tokenizer(path).pieces if path.is_file() else None

    @override
    def check_model(self, model: EncoderModel, splits: Iterable[str] | None = None) -> None:
        super().check_model(model, splits)
        length, frontend = self.config.tokens_per_sample, model.config.frontends.get(Modality.TEXT)
        positions = getattr(frontend, "max_positions", None)
        if positions is not None and length > positions:
            raise RecipeError(
                f"`task.config.tokens_per_sample` is {length}, but the model has positions for {positions} tokens only; lower it."
            )

    @override
    def create_train_reader(self, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config = self.config
        share = share_batch(config.batch_size, config.max_batch_size, rank=gangs.dp.rank, world_size=gangs.dp.size)
        stream = self._open_stream(config.split)
        starts, ends = cut_blocks(stream, config.tokens_per_sample - 1, config.break_mode)
        bounds = np.searchsorted(starts, stream.bounds)
        order, mixture = arrange(stream.manifest, np.arange(len(starts)), seed, bounds=bounds)

        read, bad_samples = self._open_samples(stream, starts, ends)
        data_hash, to_fetch = stream.manifest.hash_rows(), stream.to_fetch(starts, ends)
        return TrainReader(order, share, gangs, read, bad_samples, data_hash=data_hash, mixture=mixture, to_fetch=to_fetch)

    @override
    def create_labelled_reader(self, gangs: Gangs, split: str) -> DataReader[Batch]:
        """Every row of the manifest is a sample."""
        config, labels = self.config, self.dataset.read_labels(split)
        stream = self._open_stream(split)
        starts, ends = stream.row_bounds(config.tokens_per_sample - 1)
        read, bad_samples = self._open_samples(stream, starts, ends, stream.manifest.name_of, RowLabels(labels))
        batch_size = config.max_batch_size or max(1, config.batch_size // gangs.dp.size)
        batches, to_fetch = batch_rows(np.arange(len(labels)), batch_size), stream.to_fetch(starts, ends)
        return LabelledReader(batches, gangs, read, bad_samples, to_fetch=to_fetch)

    @override
    def open_rows(self, split: str) -> RowReader:
        """Rows that are ranges of bytes are samples; whole files are cut into blocks, as for training."""
        size, stream = self.config.tokens_per_sample, self._open_stream(split)
        manifest = stream.manifest
        if all(manifest.location(row).size is not None for row in range(len(manifest))):
            starts, ends = stream.row_bounds(size - 1)
            if cut := int((manifest.integers("tokens") > size - 1).sum()):
                log.warning("{:,} of {:,} samples are longer than `tokens_per_sample` and are cut off.", cut, len(manifest))
            name, samples = manifest.name_of, "rows of the manifest"
        else:
            starts, ends = cut_blocks(stream, size - 1, self.config.break_mode)
            name, samples = None, f"blocks of at most {size} tokens"
        read, bad_samples = self._open_samples(stream, starts, ends, name)

        return RowReader(ends - starts + 1, None, read, bad_samples, samples, stream.to_fetch(starts, ends))

    @override
    def locate(self, split: str, row: int) -> str:
        return str(self.dataset.split(split).location(row))

    def _open_stream(self, split: str) -> TokenStream:
        return TokenStream(self.dataset.split(split), self.dataset.vocabulary)

    def _open_samples(
        self,
        stream: TokenStream,
        starts: TokenIds,
        ends: TokenIds,
        name: Callable[[int], str] | None = None,
        targets: RowLabels | None = None,
    ) -> tuple[ReadBatch, BadSamples]:
        """Open samples that are tokens [start, end) of a stream.

        :param name: what a sample is called in reports; None = its tokens.
        """

        def name_tokens(row: int) -> str:
            return f"tokens {starts[row]} to {ends[row]}"

        manifest = stream.manifest
        bad_samples = BadSamples(
            manifest.path,
            len(starts),
            name or name_tokens,
            self.config.bad_samples,
            self.report,
            lambda sample: manifest.file_of(stream.row_at(int(starts[sample]))),
        )

        def read_checked(row: int, epoch: int) -> TokenIds:
            return stream.read(int(starts[row]), int(ends[row]))

        def read(batch: RowBatch) -> Batch | None:
            rows = batch.rows.tolist()
            firsts, lasts = starts[batch.rows], ends[batch.rows]
            padded = None
            if (firsts < lasts).all():
                with suppress(OSError):
                    padded = pad_tokens(stream.view(firsts, lasts))
            if padded is None or int(padded[0].max()) >= stream.vocabulary.size:
                # Some are bad: only now is it worth the time to look at each.
                samples, rows = read_samples(batch, bad_samples, read_checked)
                if not samples:
                    return None
                padded = pad_tokens(samples)

            return make_batch(Modality.TEXT, padded, rows, targets)

        return read, bad_samples
