"""Sharding, activation checkpointing and compilation of models, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any, TypeVar

import torch
from fairseq2.error import NotSupportedError
from fairseq2.models.utils.ac import apply_layerwise_ac
from fairseq2.models.utils.fsdp import apply_layerwise_fsdp
from fairseq2.nn.fsdp import FSDPWrapper
from torch import nn

from d2v_plugin.models.base import BlockList, EncoderModel

ModelT = TypeVar("ModelT", bound=EncoderModel)


def apply_fsdp(model: ModelT, granularity: str, wrapper: FSDPWrapper) -> ModelT:
    """Shard every block by itself, student's and teacher's alike, so that both have the same shards for the EMA."""
    if granularity not in ("layer", "stack"):
        raise NotSupportedError(f"`trainer.fsdp.granularity` must be `layer`, but is `{granularity}`.")
    for blocks in _find_block_lists(model):
        apply_layerwise_fsdp(blocks, wrapper)
    return model


def apply_activation_checkpointing(model: ModelT, every_nth_layer: int) -> ModelT:
    """Recompute the student's blocks in the backward pass; the teacher has none."""
    for blocks in _find_block_lists(model):
        if any(parameter.requires_grad for parameter in blocks.parameters()):
            apply_layerwise_ac(blocks, every_nth_layer)
    return model


def compile_blocks(model: EncoderModel, *, mode: str | None = None, **options: Any) -> None:
    """Compile each block in place, student's and teacher's alike, and the methods that modules name in ``compiled_methods``.

    Equal blocks share their graphs. fairseq2 calls this when the criterion is there: the teacher's blocks are copies, and a copy
    of a compiled block is not compiled.

    :param mode: of :func:`torch.compile`; ``reduce-overhead`` records CUDA graphs.
    :param options: others of :func:`torch.compile`.
    """
    for blocks in _find_block_lists(model):
        for block in blocks:
            block.compile(mode=mode, **options)
    for module in model.modules():
        for name in getattr(module, "compiled_methods", ()):
            # Bound here, so that a copy of the module has a method of its own.
            compiled = torch.compile(getattr(type(module), name), mode=mode, **options)
            setattr(module, name, MethodType(compiled, module))

    if mode in ("reduce-overhead", "max-autotune"):
        # What CUDA graphs of the last pass wrote may be written over.
        model.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())
    if torch.backends.fp32_precision == "tf32":  # type: ignore[attr-defined]
        # Autotuning asks by the older name, which raises where only the newer was set, as fairseq2 does.
        torch.set_float32_matmul_precision("high")


def _find_block_lists(model: nn.Module) -> Iterator[BlockList]:
    return (module for module in list(model.modules()) if isinstance(module, BlockList))
