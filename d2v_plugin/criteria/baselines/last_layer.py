"""Regression of the teacher's last layer: data2vec 2.0 without contextualised targets from several layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from d2v_plugin.core.ranges import PositiveInt
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config
from d2v_plugin.criteria.targets import TargetConfig


@dataclass(kw_only=True)
class LastLayerTargets(TargetConfig):
    """The output of the last block as it is."""

    num_layers: PositiveInt = 1

    end_of_block: bool = True

    instance_norm_layers: bool = False


@dataclass(kw_only=True)
class LastLayerConfig(Data2Vec2Config):
    """Settings of ``last_layer_regression``: those of ``data2vec2`` with other targets by default."""

    targets: LastLayerTargets = field(default_factory=LastLayerTargets)
