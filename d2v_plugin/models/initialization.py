"""BERT's initialisation, from which both families start, and that of the layer that predicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

normal: Final = partial(nn.init.normal_, std=0.02)


def initialize_as_bert(module: nn.Module, linear: Callable[[Tensor], Tensor] = normal) -> None:
    """Initialise linear layers and embeddings by themselves; other modules stay as they are.

    :param linear: initialises the weights of linear layers.
    """
    if isinstance(module, nn.Linear):
        linear(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        normal(module.weight)
        if module.padding_idx is not None and not module.weight.is_meta:
            nn.init.zeros_(module.weight[module.padding_idx])


def scale_prediction(head: object, scale: float) -> None:
    """Multiply the weights and the bias of a head's last linear layer.

    :param head: a module; anything else = the model has none.
    """
    linears = [part for part in head.modules() if isinstance(part, nn.Linear)] if isinstance(head, nn.Module) else []
    with torch.no_grad():
        for parameter in linears[-1].parameters() if linears else ():
            parameter.mul_(scale)
