"""Probe by logistic regression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from typing_extensions import override

from d2v_plugin.core.ranges import NonNegativeFloat
from d2v_plugin.core.validation import Checked
from d2v_plugin.probing.base import VectorProbe, mix_layers

MAX_ITERATIONS = 500


@dataclass(kw_only=True)
class LinearProbeConfig(Checked):
    l2: NonNegativeFloat = 1.0
    """Weight of half the squared norm of the weights (not of the biases) beside the sum of the losses: scikit-learn's 1 / C."""


class LinearProbe(VectorProbe):
    """Multinomial logistic regression, fitted to convergence; together with the shares of layers, if there are several."""

    weighs_layers = True

    def __init__(self, config: LinearProbeConfig) -> None:
        self.config = config

    @override
    def predict_vectors(self, train_x: Tensor, train_y: Tensor, test_x: Tensor) -> Tensor:
        num_classes = int(train_y.max()) + 1
        weight = train_x.new_zeros((num_classes, train_x.size(1) // self.num_layers), requires_grad=True)
        bias = train_x.new_zeros(num_classes, requires_grad=True)
        logits = train_x.new_zeros(self.num_layers, requires_grad=True)
        weighs = self.num_layers > 1
        optimizer = torch.optim.LBFGS(
            [weight, bias, *([logits] if weighs else [])],
            max_iter=MAX_ITERATIONS,
            tolerance_grad=1e-6,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def mix(x: Tensor) -> Tensor:
            return mix_layers(x, logits) if weighs else x

        def compute_loss() -> Tensor:
            optimizer.zero_grad()
            penalty = self.config.l2 / 2 / len(train_x) * weight.square().sum()
            loss = cross_entropy(linear(mix(train_x), weight, bias), train_y) + penalty
            loss.backward()

            return loss

        with torch.enable_grad():
            optimizer.step(compute_loss)

        self.layer_weights = logits.softmax(0).tolist() if weighs else ()

        return linear(mix(test_x), weight, bias).argmax(dim=1)
