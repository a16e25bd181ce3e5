"""Probes of a run, during training and at its end."""

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

from d2v_plugin.core.batch import Batch
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.models.pooling import Pooling
from d2v_plugin.probing.base import ProbeSection, create_probes, probe_scores
from d2v_plugin.probing.collection import FeatureCollection
from d2v_plugin.probing.unit import WEIGHTED, ProbedLayers, ProbeReader, ProbeUnit, find_layers

Extract = Callable[[Batch], Features]
"""Computes the features of a batch."""

OpenSplit = Callable[[Gangs, str], DataReader[Batch]]
"""Opens a labelled split of the dataset."""


@dataclass(kw_only=True)
class ProbingSection:
    """Selects the probes that measure the features, and the splits; the regime's ``validate_every_n_steps`` says how often."""

    probes: list[ProbeSection] = field(default_factory=list)
    """The probes, each ``{name, config}``; none by default."""

    train_split: str = "train"
    """The labelled split that probes are fitted on."""

    valid_split: str = "valid"
    """The labelled split that they are measured on."""

    layers: ProbedLayers = field(default_factory=lambda: [-1])
    """The blocks whose output is probed: from 0, or from the last one, -1; or ``all``. The metric ``probe_linear`` is that of the
    best of them; if they are several, there is also one for each, such as ``probe_linear_layer3``. ``weighted``: a sum of all
    layers by shares that are learned with the probe, as in SUPERB; the shares are ``probe_linear_layer3_weight``."""

    pooling: Pooling = "mean"
    """What k-NN and the linear probe see of a sample: the ``mean`` of its tokens; ``statistics``: mean and standard deviation,
    for speech; or ``cls``: the class token. The attentive probe sees all tokens."""

    baselines: bool = True
    """Whether to measure a randomly initialised model of the same arch, too; at the end of a run on images also raw pixels."""


@final
class Probing:
    """The probes of a run with the labelled splits that they are fitted and measured on."""

    def __init__(self, resolver: DependencyResolver, section: ProbingSection, open_split: OpenSplit) -> None:
        """:raises RecipeError: a probe is listed twice, or unknown."""
        self.section = section
        self.probes = create_probes(resolver, section.probes)
        if len(self.probes) < len(section.probes):
            raise RecipeError("`probing.probes` names a probe twice; both accuracies would have the same name.")
        unable = [name for name, probe in self.probes.items() if not probe.weighs_layers]
        if section.layers == WEIGHTED and unable:
            raise RecipeError(
                f"`probing.layers` is {WEIGHTED}, but the probe {', '.join(unable)} learns no weights; leave it out, or set "
                "`layers` to all."
            )
        self._open_split = open_split

    def create_reader(self, gangs: Gangs) -> ProbeReader:
        """:raises fairseq2.recipe.error.SplitNotKnownError: the dataset lacks one of the two splits."""
        return ProbeReader(self._open_split(gangs, self.section.train_split), self._open_split(gangs, self.section.valid_split))

    def create_unit(self, model: EncoderModel, gangs: Gangs, *, name: str = "probe") -> ProbeUnit:
        """Create what fairseq2's validator runs during training, and its evaluator afterwards.

        :param name: what is measured, for logs.
        :raises RecipeError: the model has no such layers.
        """
        try:
            return ProbeUnit(model, self.probes, gangs, layers=self.section.layers, pooling=self.section.pooling, name=name)
        except ValueError as ex:
            raise RecipeError(f"`probing`: {ex}") from ex

    def measure_model(self, model: EncoderModel, device: Device) -> dict[str, float]:
        """Run the probes on the features of a model, on this process alone.

        :returns: accuracies from 0 to 1 by metric; see :func:`d2v_plugin.probing.base.probe_scores`.
        """

        def extract(batch: Batch) -> Features:
            return model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality, lengths=batch.lengths)

        model.eval()

        return self._measure(extract, device, find_layers(self.section.layers, model.num_layers), self.section.pooling)

    def measure_inputs(self, device: Device) -> dict[str, float]:
        """Run the probes on the inputs themselves, which must all have one shape: each is one token."""

        def extract(batch: Batch) -> Features:
            x: Tensor = batch.inputs.flatten(1).unsqueeze(1)

            return Features(x, None, [x], None)

        return self._measure(extract, device, [0], "mean")

    @torch.no_grad()
    def _measure(self, extract: Extract, device: Device, layers: list[int], pooling: Pooling) -> dict[str, float]:
        gangs = create_fake_gangs(device)
        weighted = self.section.layers == WEIGHTED
        collection = FeatureCollection(self.probes.values(), layers, pooling, weighted=weighted)
        for batches in self.create_reader(gangs):
            for batch in batches:
                batch.to(device)
                collection.add(extract(batch.batch), batch.batch, is_train=batch.is_train, name=batch.name)

        return probe_scores(self.probes, collection.gather(gangs.dp))
