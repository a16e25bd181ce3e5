"""Which probes a run uses, during training and at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from fairseq2.datasets import DataReader
from fairseq2.device import Device
from fairseq2.gang import Gangs, create_fake_gangs
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyResolver
from torch import Tensor

from d2v_plugin.data.batch import Batch
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.monitoring.probes import (
    Pooling,
    ProbeReader,
    ProbeSection,
    ProbeUnit,
    create_probes,
    pool_features,
    probe_scores,
)

Extract = Callable[[Batch], Tensor]
"""Maps a batch to one vector per sample, (N, D)."""

OpenSplit = Callable[[Gangs, str], DataReader[Batch]]
"""Opens a labelled split of the dataset."""


@dataclass(kw_only=True)
class ProbingSection:
    """Which probes measure the features, and on what; the regime's ``validate_every_n_steps`` says how often."""

    probes: list[ProbeSection] = field(default_factory=list)
    """The probes, each ``{name, config}``; none by default."""

    train_split: str = "train"
    """The labelled split that probes are fitted on."""

    valid_split: str = "valid"
    """The labelled split that they are measured on."""

    layer: int = -1
    """The block whose output is pooled over tokens: from 0, or from the last one, -1."""

    pooling: Pooling = "mean"
    """``mean`` of the tokens, or ``statistics``: mean and standard deviation, for speech."""

    baselines: bool = True
    """Whether the end of a run also measures a randomly initialised model of the same arch and, for images, raw pixels."""


@final
class Probing:
    """The probes of a run with the labelled splits that they are fitted and measured on."""

    def __init__(self, resolver: DependencyResolver, section: ProbingSection, open_split: OpenSplit) -> None:
        """:raises RecipeError: a probe is listed twice, or unknown."""
        self.section = section
        self.probes = create_probes(resolver, section.probes)
        if len(self.probes) < len(section.probes):
            raise RecipeError("`probing.probes` names a probe twice; both accuracies would have the same name.")
        self._open_split = open_split

    def create_reader(self, gangs: Gangs) -> ProbeReader:
        """:raises fairseq2.recipe.error.SplitNotKnownError: the dataset lacks one of the two splits."""
        train_reader, valid_reader = (
            self._open_split(gangs, split) for split in (self.section.train_split, self.section.valid_split)
        )

        return ProbeReader(train_reader, valid_reader)

    def create_unit(self, model: EncoderModel, gangs: Gangs) -> ProbeUnit:
        """What fairseq2's validator runs during training."""
        return ProbeUnit(model, self.probes, gangs, layer=self.section.layer, pooling=self.section.pooling)

    def measure_model(self, model: EncoderModel, device: Device) -> dict[str, float]:
        """Run the probes on the features of a model; see :meth:`measure`."""

        def extract(batch: Batch) -> Tensor:
            features = model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)

            return pool_features(features, self.section.layer, self.section.pooling)

        model.eval()

        return self.measure(extract, device)

    @torch.no_grad()
    def measure(self, extract: Extract, device: Device) -> dict[str, float]:
        """Run the probes on any features, on this process alone.

        :returns: the accuracy of each probe, from 0 to 1.
        """
        xs: dict[bool, list[Tensor]] = {True: [], False: []}
        labels: dict[bool, list[Tensor]] = {True: [], False: []}
        for batches in self.create_reader(create_fake_gangs(device)):
            for batch in batches:
                batch.to(device)
                assert batch.batch.labels is not None
                xs[batch.is_train].append(extract(batch.batch))
                labels[batch.is_train].append(batch.batch.labels)

        train, valid = ((torch.cat(xs[is_train]), torch.cat(labels[is_train])) for is_train in (True, False))

        return probe_scores(self.probes, *train, *valid)
