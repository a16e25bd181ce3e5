"""AdamW as data2vec uses it: no weight decay on biases, norms and scales; optionally with fairseq's epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from fairseq2.runtime.dependency import DependencyResolver
from torch import nn
from torch.optim import AdamW, Optimizer

from d2v_plugin.core.ranges import NonNegativeFloat, PositiveFloat, PositiveShare, Share
from d2v_plugin.core.validation import Checked
from d2v_plugin.training.layer_groups import Layer, count_frozen_updates, find_layers

DATA2VEC_ADAMW = "data2vec_adamw"


@dataclass(kw_only=True)
class Data2VecAdamWConfig(Checked):
    """Settings of the ``data2vec_adamw`` optimizer; the defaults are those of the base audio and text models."""

    lr: NonNegativeFloat = 5e-4
    """The peak learning rate; the scheduler scales it."""

    betas: tuple[Share, Share] = (0.9, 0.98)
    """Decay rates of the running averages of the gradient and of its square."""

    eps: PositiveFloat = 1e-6
    """Added to the denominator of the update."""

    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay, applied to matrices and kernels only."""

    decay_all: bool = False
    """Decay every parameter. This is what the original did: its exception for biases and norms was never applied."""

    decay_tokens: list[str] = field(default_factory=list)
    """Learned tokens that are decayed although they are vectors, by the last part of their names: ``extra_tokens`` and
    ``mask_token`` in MAE, ``mask_emb`` in data2vec 1.0 for images."""

    layer_decay: PositiveShare = 1.0
    """How much smaller the learning rate of each layer is than that of the layer above it, for fine-tuning: the last block has
    this times ``lr``, the one below the square of it, and so on down to the frontend (BEiT, MAE). 1 = all have the same."""

    layer_decay_frontend: bool = True
    """Whether the frontend counts as the lowest layer; data2vec 2.0 trained it with the full rate."""

    head_lr: NonNegativeFloat | None = None
    """The learning rate of what fine-tuning puts on top; None = ``lr``."""

    head_weight_decay: NonNegativeFloat | None = None
    """The weight decay of what fine-tuning puts on top; None = ``weight_decay``."""

    fairseq_eps: bool = False
    """Add ``eps`` before the bias correction of the second moment, as fairseq's Adam does, instead of after it."""

    impl: Literal["auto", "foreach", "fused", "naive"] = "auto"
    """The implementation, see :class:`torch.optim.AdamW`; ``auto`` is ``fused`` on CPUs and CUDA devices."""


def create_data2vec_adamw(resolver: DependencyResolver, config: Data2VecAdamWConfig) -> Optimizer:
    """Build the optimizer of the data parallel model; fairseq2 calls it after the model was wrapped."""
    return build_adamw(resolver.resolve(nn.Module), config)


def build_adamw(model: nn.Module, config: Data2VecAdamWConfig) -> AdamW:
    """Build the optimizer of the trainable parameters of ``model``; frozen ones, such as the teacher's, are left out."""
    options: dict[str, bool] = {}
    if config.impl == "naive":
        options["foreach"] = False  # also disables `fused`
    elif config.impl != "auto":
        options[config.impl] = True
    elif all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters()):
        options["fused"] = True

    optimizer = AdamW(
        group_parameters(model, config),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        **options,
    )
    if config.fairseq_eps:
        # The count lives in the groups so that it is saved and restored with them.
        for group in optimizer.param_groups:
            group["fairseq_eps"] = config.eps
            group["num_updates"] = 0
        optimizer.register_step_pre_hook(_uncorrect_eps)
    # What is frozen at first must begin with the bias correction of its own first update.
    if count_frozen_updates(model) == 0:
        _create_moments(optimizer)

    return optimizer


def _create_moments(optimizer: AdamW) -> None:
    """On a CPU, make room for the moments before the first update: as AdamW does in it, then amid activations and gradients.

    Those are freed in every update, and what stays between them would leave holes that are too small for the next (text base:
    a peak of 6.2 GiB instead of 5.7).
    """
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if parameter.device.type == "cpu":
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def group_parameters(model: nn.Module, config: Data2VecAdamWConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters by learning rate and weight decay.

    Biases and everything that is a vector in disguise (norms, the class token, the ALiBi scale of shape (1, 1, H, 1, 1))
    are not decayed, unless ``decay_tokens`` names them. The rule looks at shapes and at the last part of a name, so wrappers
    that prefix names do not matter.

    :returns: groups for :class:`torch.optim.Optimizer`, from the input to the head; empty ones are omitted.
    """
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for layer in find_layers(model):
        lr, decay = _rates(layer, config)
        # Decayed ones first.
        for wants_decay in (True, False):
            # The head has groups of its own: what is trained alone at first counts its own updates.
            found = groups.setdefault((layer.is_head, lr, decay if wants_decay else 0.0), [])
            for name, parameter in layer.parameters.items():
                if parameter.requires_grad and _is_decayed(name, parameter, config) == wants_decay:
                    found.append(parameter)

    return [
        {"params": parameters, "lr": lr, "weight_decay": decay} for (_, lr, decay), parameters in groups.items() if parameters
    ]


def _rates(layer: Layer, config: Data2VecAdamWConfig) -> tuple[float, float]:
    """Learning rate and weight decay of a layer."""
    if layer.is_head:
        lr = config.lr if config.head_lr is None else config.head_lr

        return lr, config.weight_decay if config.head_weight_decay is None else config.head_weight_decay
    if layer.name == "frontend" and not config.layer_decay_frontend:
        return config.lr, config.weight_decay

    return config.lr * config.layer_decay**layer.below_head, config.weight_decay


def _is_decayed(name: str, parameter: nn.Parameter, config: Data2VecAdamWConfig) -> bool:
    if config.decay_all or name.rpartition(".")[2] in config.decay_tokens:
        return True

    return sum(size > 1 for size in parameter.shape) > 1 and not name.endswith("bias")


def _uncorrect_eps(optimizer: Optimizer, args: object, kwargs: object) -> None:
    # PyTorch divides by sqrt(v)/sqrt(1 - β2^t) + eps, fairseq by (sqrt(v) + eps)/sqrt(1 - β2^t).
    for group in optimizer.param_groups:
        if not _has_gradients(group):
            continue
        group["num_updates"] += 1
        group["eps"] = group["fairseq_eps"] / math.sqrt(1.0 - group["betas"][1] ** group["num_updates"])


def forget_update(optimizer: Optimizer) -> None:
    """Take back fairseq's count of updates by one: for a step that is left out, at whose beginning it was raised."""
    for group in optimizer.param_groups:
        if "num_updates" in group and _has_gradients(group):
            group["num_updates"] -= 1


def _has_gradients(group: dict[str, Any]) -> bool:
    """Tell whether an update concerns the group: what is frozen for a while has no gradients."""
    return any(parameter.grad is not None for parameter in group["params"])
