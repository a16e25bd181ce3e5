"""Images: pre-training batches, and labelled ones for probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamples
from d2v_plugin.data.buffers import Buffers
from d2v_plugin.data.dataset import ImageManifest, expect_dataset
from d2v_plugin.data.image import ImageReadingConfig, Normalizer, augment, decode, fit
from d2v_plugin.data.order import RowBatch, SampleOrder, share_batch
from d2v_plugin.data.reader import LabelledReader, ReadBatch, TrainReader, batch_rows, read_samples
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.tasks.base import Task


@dataclass(kw_only=True)
class ImagePretrainingConfig:
    """Settings of ``image_pretraining``."""

    split: str = "train"
    """The manifest to train on."""

    batch_size: int = 2048
    """Images per update, over all ranks."""

    max_batch_size: int | None = None
    """Most images in one forward pass on one rank; more are accumulated. None = no limit."""

    image: ImageReadingConfig = field(default_factory=ImageReadingConfig)
    """How images become tensors."""

    bad_samples: BadSampleConfig = field(default_factory=BadSampleConfig)
    """How many unreadable images a run puts up with."""


class ImagePretrainingTask(Task):
    """Reads an ``image_manifest``."""

    modality = Modality.IMAGE

    def __init__(self, config: ImagePretrainingConfig) -> None:
        self.config = config

    @override
    def create_train_reader(self, dataset: object, gangs: Gangs, seed: int) -> DataReader[Batch]:
        share = share_batch(self.config.batch_size, self.config.max_batch_size, rank=gangs.dp.rank, world_size=gangs.dp.size)
        images = expect_dataset(dataset, ImageManifest)
        manifest = images.split(self.config.split)

        def transform(image: Tensor, row: int, epoch: int) -> Tensor:
            return augment(image, self.config.image, seed, epoch, row)

        read, bad_samples = self._create_read(images, self.config.split, transform, labels=None)

        return TrainReader(SampleOrder(len(manifest), seed), share, read, gangs, bad_samples, name=manifest.name_of)

    @override
    def create_labelled_reader(self, dataset: object, gangs: Gangs, split: str) -> DataReader[Batch]:
        images = expect_dataset(dataset, ImageManifest)
        labels = images.read_labels(split, self.labels)

        def transform(image: Tensor, row: int, epoch: int) -> Tensor:
            return fit(image, self.config.image)

        read, bad_samples = self._create_read(images, split, transform, labels)
        batch_size = self.config.max_batch_size or max(1, self.config.batch_size // gangs.dp.size)

        return LabelledReader(batch_rows(np.arange(len(labels)), batch_size), read, gangs, bad_samples)

    @override
    def open_rows(self, dataset: object, split: str) -> RowReader:
        images = expect_dataset(dataset, ImageManifest)
        manifest = images.split(split)

        def transform(image: Tensor, row: int, epoch: int) -> Tensor:
            return fit(image, self.config.image)

        read, bad_samples = self._create_read(images, split, transform, labels=None)

        return RowReader(manifest.path, np.ones(len(manifest), dtype=np.int64), self.config.max_batch_size, bad_samples, read)

    def _create_read(
        self,
        dataset: ImageManifest,
        split: str,
        transform: Callable[[Tensor, int, int], Tensor],
        labels: Tensor | None,
    ) -> tuple[ReadBatch, BadSamples]:
        manifest = dataset.split(split)
        bad_samples = BadSamples(manifest.path, len(manifest), self.config.bad_samples, self.bad_samples_report)

        buffers, normalizer = Buffers(), Normalizer(self.config.image)
        size = self.config.image.size

        def read(batch: RowBatch) -> Batch | None:
            places = buffers.take(len(batch.rows), 3, size, size)
            found: list[int] = []

            def read_image(row: int, epoch: int) -> None:
                normalizer.write(transform(decode(manifest.location(row)), row, epoch), places[len(found)])
                found.append(row)

            read_samples(batch, manifest.name_of, bad_samples, read_image)
            if not found:
                return None
            ids = torch.tensor(found)

            return Batch(
                Modality.IMAGE,
                torch.from_numpy(places[: len(found)]),
                ids,
                labels=None if labels is None else labels[ids],
            )

        return read, bad_samples
