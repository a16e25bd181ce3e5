"""Probe by k nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot
from typing_extensions import override

from d2v_plugin.core.ranges import PositiveInt
from d2v_plugin.core.validation import Checked
from d2v_plugin.probing.base import VectorProbe

# Test samples that are compared with all training samples at a time.
CHUNK_SIZE = 1024


@dataclass(kw_only=True)
class KnnProbeConfig(Checked):
    k: PositiveInt = 5
    """How many of the nearest training samples vote; a tie goes to the class that comes first."""

    metric: Literal["euclidean", "cosine"] = "euclidean"
    """What is near: a small distance or a small angle."""


class KnnProbe(VectorProbe):
    """Majority vote of the nearest training samples."""

    def __init__(self, config: KnnProbeConfig) -> None:
        self.config = config

    @override
    def predict_vectors(self, train_x: Tensor, train_y: Tensor, test_x: Tensor) -> Tensor:
        if self.config.metric == "cosine":
            # At equal lengths the smallest angle is the smallest distance.
            train_x, test_x = normalize(train_x), normalize(test_x)

        k, num_classes = min(self.config.k, len(train_x)), int(train_y.max()) + 1
        squares = train_x.square().sum(dim=1)

        def vote(x: Tensor) -> Tensor:
            # Squared distances up to a constant per test sample: (n, D), (N, D) -> (n, N)
            distances = torch.addmm(squares, x, train_x.T, alpha=-2.0)
            nearest = distances.topk(k, dim=1, largest=False).indices

            # (n, k) -> (n, k, C) -> (n)
            return one_hot(train_y[nearest], num_classes).sum(dim=1).argmax(dim=1)

        return torch.cat([vote(x) for x in torch.split(test_x, CHUNK_SIZE)])
