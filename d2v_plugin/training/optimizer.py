"""AdamW as data2vec uses it: no weight decay on biases, norms and scales; optionally with fairseq's epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import nn
from torch.optim import AdamW, Optimizer

DATA2VEC_ADAMW = "data2vec_adamw"


@dataclass(kw_only=True)
class Data2VecAdamWConfig(Validatable):
    """Settings of the ``data2vec_adamw`` optimizer; the defaults are those of the base audio and text models."""

    lr: float = 5e-4
    """The peak learning rate; the scheduler scales it."""

    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the running averages of the gradient and of its square."""

    eps: float = 1e-6
    """Added to the denominator of the update."""

    weight_decay: float = 0.01
    """Decoupled weight decay, applied to matrices and kernels only."""

    decay_all: bool = False
    """Decay every parameter. This is what the original did: its exception for biases and norms was never applied."""

    fairseq_eps: bool = False
    """Add ``eps`` before the bias correction of the second moment, as fairseq's Adam does, instead of after it."""

    impl: Literal["auto", "foreach", "fused", "naive"] = "auto"
    """The implementation, see :class:`torch.optim.AdamW`; ``auto`` lets PyTorch choose."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.lr < 0.0:
            result.add_error(f"`lr` must be at least 0, but is {self.lr}.")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            result.add_error(f"`betas` must be at least 0 and less than 1, but are {self.betas}.")
        if self.eps <= 0.0:
            result.add_error(f"`eps` must be greater than 0, but is {self.eps}.")
        if self.weight_decay < 0.0:
            result.add_error(f"`weight_decay` must be at least 0, but is {self.weight_decay}.")

        return result


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

    optimizer = AdamW(
        group_parameters(model, config.weight_decay, decay_all=config.decay_all),
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

    return optimizer


def group_parameters(model: nn.Module, weight_decay: float, *, decay_all: bool = False) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that are decayed and those that are not.

    Biases and everything that is a vector in disguise (norms, the class token, the ALiBi scale of shape (1, 1, H, 1, 1))
    are not decayed. The rule looks at shapes and at the last part of a name, so wrappers that prefix names do not matter.

    :returns: one or two groups for :class:`torch.optim.Optimizer`; empty ones are omitted.
    """
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_vector = sum(size > 1 for size in parameter.shape) <= 1
        if decay_all or not (is_vector or name.endswith("bias")):
            decayed.append(parameter)
        else:
            kept.append(parameter)

    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]

    return [group for group in groups if group["params"]]


def _uncorrect_eps(optimizer: Optimizer, args: object, kwargs: object) -> None:
    # PyTorch divides by sqrt(v)/sqrt(1 - β2^t) + eps, fairseq by (sqrt(v) + eps)/sqrt(1 - β2^t).
    for group in optimizer.param_groups:
        group["num_updates"] += 1
        group["eps"] = group["fairseq_eps"] / math.sqrt(1.0 - group["betas"][1] ** group["num_updates"])
