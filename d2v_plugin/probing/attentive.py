"""Attentive probe: learned queries that attend over the tokens of a sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from d2v_plugin.core.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from d2v_plugin.core.validation import Checked
from d2v_plugin.probing.base import Probe, ProbeData, mix_layers

# First weights and the order of samples are those of this seed in every measurement.
SEED = 1


@dataclass(kw_only=True)
class AttentiveProbeConfig(Checked):
    num_queries: PositiveInt = 8
    """How many learned queries look at the tokens; the class is read off all that they find, side by side."""

    num_epochs: PositiveInt = 40
    """Passes over the training split."""

    batch_size: PositiveInt = 32
    """Samples per update."""

    lr: PositiveFloat = 5e-3
    """Peak learning rate; it falls to zero along a cosine."""

    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of queries and classifier."""


class AttentiveProbe(Probe):
    """Attention pooling and a linear classifier, trained for a few epochs with AdamW in fp32.

    Unlike the linear probe it can choose which tokens matter, so it does not depend on how features are pooled. It keeps all
    tokens of both splits in memory.
    """

    needs_tokens = True
    weighs_layers = True

    def __init__(self, config: AttentiveProbeConfig) -> None:
        self.config = config

    @override
    def predict(self, train: ProbeData, test: ProbeData) -> Tensor:
        mean, std = _measure_scale(train.tokens)

        def standardize(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            # n × (S_n, D) -> (n, S, D), (n, S)
            lengths = torch.tensor([len(sample) for sample in tokens], device=mean.device)
            x = (pad_sequence(list(tokens), batch_first=True).to(torch.float32) - mean) / std

            return x, torch.arange(x.size(1), device=mean.device) >= lengths[:, None]

        dim, num_classes = mean.size(0) // train.num_layers, int(train.y.max()) + 1
        classifier = AttentiveClassifier(dim, num_classes, self.config.num_queries, train.num_layers).to(mean.device)
        groups: list[dict[str, Any]] = [{"params": [classifier.queries, classifier.weight, classifier.bias]}]
        if classifier.layers is not None:
            groups.append({"params": [classifier.layers], "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, lr=self.config.lr, weight_decay=self.config.weight_decay)
        num_updates = self.config.num_epochs * math.ceil(len(train.tokens) / self.config.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_updates)

        with torch.enable_grad():
            for rows in self._draw_batches(len(train.tokens)):
                optimizer.zero_grad()
                logits = classifier(*standardize([train.tokens[row] for row in rows.tolist()]))
                cross_entropy(logits, train.y[rows.to(train.y.device)]).backward()
                optimizer.step()
                schedule.step()

        self.layer_weights = () if classifier.layers is None else classifier.layers.softmax(0).tolist()
        size = self.config.batch_size
        batches = (test.tokens[start : start + size] for start in range(0, len(test.tokens), size))

        return torch.cat([classifier(*standardize(batch)).argmax(dim=1) for batch in batches])

    def _draw_batches(self, num_samples: int) -> Iterator[Tensor]:
        """Draw the rows of each update."""
        generator = torch.Generator().manual_seed(SEED)
        for _ in range(self.config.num_epochs):
            yield from torch.randperm(num_samples, generator=generator).split(self.config.batch_size)


class AttentiveClassifier(nn.Module):
    """Q queries; the key of a token is the token itself, since a projection of it would only turn the query."""

    def __init__(self, dim: int, num_classes: int, num_queries: int, num_layers: int = 1) -> None:
        """:param num_layers: of several the tokens lie side by side, and are summed up by learned shares."""
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.queries = nn.Parameter(torch.randn(num_queries, dim, generator=generator) / dim)
        # Zero: the first update sees all classes alike, and nothing is drawn from the global generator.
        self.weight = nn.Parameter(torch.zeros(num_classes, num_queries * dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.layers = nn.Parameter(torch.zeros(num_layers)) if num_layers > 1 else None

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """
        :param x: (N, S, L·D)
        :param padding_mask: (N, S), True = padding.
        :returns: (N, C) logits.
        """
        if self.layers is not None:
            x = mix_layers(x, self.layers)
        attention = (x @ self.queries.T).masked_fill(padding_mask[:, :, None], -torch.inf).softmax(dim=1)
        # (N, S, Q), (N, S, D) -> (N, Q·D) -> (N, C)
        found = (attention.transpose(1, 2) @ x).flatten(1)

        return nn.functional.linear(found, self.weight, self.bias)


def _measure_scale(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each dimension over all tokens, 2 × (D,), without copying them all at once."""
    count = sum(len(sample) for sample in tokens)
    mean = sum((sample.sum(dim=0, dtype=torch.float64) for sample in tokens), torch.zeros(())) / count
    std = (sum(((sample - mean).square().sum(dim=0) for sample in tokens), torch.zeros(())) / count).sqrt()

    return mean.to(torch.float32), torch.where(std > 1e-6 * mean.abs(), std, 1.0).to(torch.float32)
