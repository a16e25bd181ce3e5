"""Layers of a model as the optimizer sees them, from the input to the head, and the table that a run prints of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from d2v_plugin.core.text import format_table
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.models.base import CRITERION_PREFIX, BlockList, EncoderModel

# What BEiT counts to the top: it acts behind the blocks, or on all of them.
_TOP = ("norm.", "encoder.norm.", "encoder.rel_pos_bias.")


@dataclass
class Layer:
    """Parameters that have one learning rate."""

    name: str
    """``frontend``, ``block 0`` …, ``top``, ``decoder`` (what predicts in pre-training), ``head`` or ``criterion``."""

    below_head: int
    """How many layers it lies below the head: 1 for the last block, 0 for all above."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    """By name, trained and frozen ones."""

    @property
    def is_head(self) -> bool:
        """True for what fine-tuning puts on top."""
        return self.name == "head"


def find_layers(model: nn.Module) -> list[Layer]:
    """The layers of a model, in order.

    Prenet blocks come before the shared blocks. The last layer is all that the criterion owns: the ``head`` in fine-tuning.

    :param model: may be wrapped, sharded or checkpointed. What is not an encoder of this package is one layer.
    """
    encoder = next((module for module in model.modules() if isinstance(module, EncoderModel)), None)
    if encoder is None:
        return [Layer("model", 0, dict(model.named_parameters()))]

    blocks = _find_blocks(encoder)
    num_blocks = 1 + max(blocks.values(), default=-1)
    layers = [
        Layer("frontend", num_blocks + 1),
        *(Layer(f"block {i}", num_blocks - i) for i in range(num_blocks)),
        top := Layer("top", 0),
        decoder := Layer("decoder", 0),
        criterion := Layer("head" if isinstance(encoder.criterion, SupervisedCriterion) else "criterion", 0),
    ]
    decoders = tuple(f"{name}." for name in encoder.prediction_modules)
    for name, parameter in encoder.named_parameters():
        if name.startswith(CRITERION_PREFIX):
            layer = criterion
        elif f"{name}.".startswith(decoders):
            layer = decoder
        elif name.startswith(_TOP):
            layer = top
        else:
            layer = layers[1 + blocks.get(id(parameter), -1)]
        layer.parameters[name] = parameter

    return [layer for layer in layers if layer.parameters]


def _find_blocks(encoder: EncoderModel) -> dict[int, int]:
    """Map parameters to their block, from 0, by identity: names that wrappers change do not matter."""
    shared = encoder.blocks
    assert isinstance(shared, BlockList)
    foreign = set(encoder.criterion.modules()) if encoder.criterion is not None else set()
    prenets = [m for m in encoder.modules() if isinstance(m, BlockList) and m is not shared and m not in foreign]
    deepest = max((len(prenet) for prenet in prenets), default=0)

    found: dict[int, int] = {}
    # A shallower prenet of another modality ends where the deepest does.
    for stack, first in [(shared, deepest), *((prenet, deepest - len(prenet)) for prenet in prenets)]:
        for i, block in enumerate(stack):
            found |= {id(parameter): first + i for parameter in block.parameters()}

    return found


@dataclass(frozen=True)
class Row:
    """A line of the table; several layers share one if they are treated in the same way."""

    layers: Sequence[str]
    num_parameters: int
    num_decayed: int
    lr: float | None
    """None = frozen."""
    weight_decay: float


def format_layers(model: nn.Module, optimizer: Optimizer) -> str:
    """A table of what the optimizer trains, and how: learning rates at their peak, before the schedule scales them.

    :param model: as for :func:`find_layers`.
    """
    lines = format_table(
        ("trained", "parameters", "peak lr", "weight decay"),
        [
            (
                _join(row.layers),
                f"{row.num_parameters:,}",
                "frozen" if row.lr is None else f"{row.lr:.3g}",
                f"{row.weight_decay:g} on {row.num_decayed:,}" if row.num_decayed else "",
            )
            for row in _merge(_describe(find_layers(model), optimizer))
        ],
    )
    num_frozen = count_frozen_updates(model)
    if num_frozen > 0:
        lines.append(f"Updates 1 to {num_frozen:,} train the head alone.")

    return "\n".join(lines)


def name_groups(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Name the groups of the optimizer by the layers in them; groups of one peak rate have one name.

    :returns: names in the order of the groups, such as ``block 0 to 3, top``.
    """
    layer_of = {id(parameter): layer.name for layer in find_layers(model) for parameter in layer.parameters.values()}
    by_rate: dict[float, list[str]] = {}
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    for rate, group in zip(rates, optimizer.param_groups, strict=True):
        names = by_rate.setdefault(rate, [])
        names += [layer_of[id(parameter)] for parameter in group["params"] if layer_of[id(parameter)] not in names]
    order = list(dict.fromkeys(layer_of.values()))

    return [_join(sorted(set(by_rate[rate]), key=order.index)) for rate in rates]


def count_frozen_updates(model: nn.Module) -> int:
    """Count the updates, from the first, that train the head alone."""
    criterion = next((module for module in model.modules() if isinstance(module, SupervisedCriterion)), None)

    return 0 if criterion is None else criterion.supervised.freeze_updates


def _describe(layers: Sequence[Layer], optimizer: Optimizer) -> Iterator[Row]:
    """One row for each layer, and one for what is frozen of it."""
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for layer in layers:
        trained = [parameter for parameter in layer.parameters.values() if id(parameter) in group_of]
        frozen = [parameter for parameter in layer.parameters.values() if id(parameter) not in group_of]
        if trained:
            decays = [group_of[id(parameter)]["weight_decay"] for parameter in trained]
            decayed = [parameter for parameter, decay in zip(trained, decays, strict=True) if decay > 0.0]
            group = group_of[id(trained[0])]
            lr = float(group.get("initial_lr", group["lr"]))
            yield Row([layer.name], _count(trained), _count(decayed), lr, max(decays))
        if frozen:
            yield Row([layer.name], _count(frozen), 0, None, 0.0)


def _merge(rows: Iterator[Row]) -> Iterator[Row]:
    """Put frozen ones last, and neighbours that are treated alike in one row."""
    ordered = sorted(rows, key=lambda row: row.lr is None)
    for (lr, decay), same in groupby(ordered, key=lambda row: (row.lr, row.weight_decay)):
        members = list(same)
        yield Row(
            [name for row in members for name in row.layers],
            sum(row.num_parameters for row in members),
            sum(row.num_decayed for row in members),
            lr,
            decay,
        )


def _join(names: Sequence[str]) -> str:
    """``block 0, block 1, block 2`` -> ``block 0 to 2``"""
    blocks = [name for name in names if name.startswith("block ")]
    if len(blocks) < 2:
        return ", ".join(names)
    joined = f"{blocks[0]} to {blocks[-1].removeprefix('block ')}"
    first = names.index(blocks[0])

    return ", ".join([*names[:first], joined, *(name for name in names[first:] if name not in blocks)])


def _count(parameters: Sequence[Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
