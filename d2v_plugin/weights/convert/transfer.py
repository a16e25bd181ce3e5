"""What becomes of a foreign checkpoint's tensors: names in, names out, and a table of all; nothing is dropped in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.families import AnyConfig
from d2v_plugin.weights.state import Mismatch, State, build_skeleton, compare

_ACTIONS: Final = ("came over", "new", "left out")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    action: str
    """``came over``, ``new`` or ``left out``."""

    part: str
    """Name of a module or a tensor; blocks stand together."""

    count: int
    """Tensors."""

    remark: str = ""
    """Why, or how."""


@dataclass
class Transfer:
    """The table of a conversion."""

    origin: str
    """What was converted, such as "Hugging Face's wav2vec2"."""

    rows: list[Row] = field(default_factory=list)

    def add(self, action: str, keys: Iterable[str], remark: str = "") -> None:
        """Add tensors, those of a part on one line."""
        counts = {(row.action, row.part, row.remark): row.count for row in self.rows}
        for key in keys:
            line = action, part_of(key), remark
            counts[line] = counts.get(line, 0) + 1
        self.rows = [Row(action, part, count, remark) for (action, part, remark), count in counts.items()]

    @staticmethod
    def read(origin: str, described: Mapping[str, list[list[str]]]) -> Transfer:
        """The table that :meth:`describe` made plain data of."""
        rows = [
            Row(action, part, int(count.split()[0]), remark) for action, rows in described.items() for part, count, remark in rows
        ]
        return Transfer(origin, rows)

    def format(self) -> list[str]:
        """The table, as lines."""
        return [f"{self.origin}:", *format_table(self.describe())]

    def describe(self) -> dict[str, list[list[str]]]:
        """The same as plain data, for ``config.json``: part, number of tensors and remark, by what became of them."""
        return {
            action: [
                [row.part, f"{row.count} tensor{'s' * (row.count != 1)}", row.remark] for row in self.rows if row.action == action
            ]
            for action in _ACTIONS
        }


def format_table(described: Mapping[str, list[list[str]]]) -> list[str]:
    """Lines of a table in the form of :meth:`Transfer.describe`."""
    rows = [(action, *row) for action, rows in described.items() for row in rows]
    width = max((len(part) for _, part, *_ in rows), default=0)
    return [f"  {action:<9}  {part:<{width}}  {count:<11}  {remark}".rstrip() for action, part, count, remark in rows]


@dataclass(kw_only=True)
class Foreign:
    """A model of others in our terms: the family ``data2vec1``, without prediction head."""

    config: AnyConfig

    state: State
    """All of its parameters."""

    transfer: Transfer
    """What became of the original's."""

    lacking: Sequence[str] = ()
    """Names of parameters that the original lacks; they are zero."""


@dataclass(frozen=True)
class Names:
    """How the tensors of one foreign format are called here."""

    rules: Sequence[tuple[str, str]]
    """Regular expressions for whole names, and ours; the first that matches counts."""

    left_out: Mapping[str, str]
    """Regular expressions for beginnings of names that have no place here, and why."""


def part_of(key: str) -> str:
    """The part of a model that a tensor belongs to: a decoder, all blocks together, otherwise the module or the parameter."""
    if (found := re.match(r"(modality_encoders\.\w+\.decoder|shared_decoder)(?=\.)", key)) is not None:
        return found[0]
    if (found := re.match(r"(?:.*?\.)??(?:layers?|blocks)(?=\.\d+\.)", key)) is not None:
        return f"{found[0]}.*"
    *names, last = key.split(".")
    names = [name for name in names if not name.isdecimal()]

    return ".".join(names) if names and last in ("weight", "bias") else key


def rename(weights: Mapping[str, Tensor], names: Names, transfer: Transfer, problems: Mismatch) -> State:
    """Give tensors our names, in fp32; what no rule explains is reported in ``problems``.

    :param transfer: what is left out is added.
    """
    state: State = {}
    dropped: dict[str, list[str]] = {}
    for key, tensor in weights.items():
        reason = next((reason for pattern, reason in names.left_out.items() if re.match(pattern, key)), None)
        new = next((re.sub(pattern, ours, key) for pattern, ours in names.rules if re.fullmatch(pattern, key)), None)
        if reason is not None:
            dropped.setdefault(reason, []).append(key)
        elif new is None or new in state:
            problems.unexpected.append(key)
        else:
            state[new] = tensor.float() if tensor.is_floating_point() else tensor
    for reason, keys in dropped.items():
        transfer.add("left out", keys, reason)

    return state


def complete(
    path: Path,
    config: AnyConfig,
    state: State,
    transfer: Transfer,
    problems: Mismatch,
    *,
    may_lack: Collection[str] = (),
    remarks: Mapping[str, str] | None = None,
) -> Foreign:
    """Check that the tensors are those of a configuration, and add zeros for what only pre-training needs.

    :param path: for messages.
    :param transfer: what came over and what is new is added.
    :param problems: names that nothing explains.
    :param may_lack: names of parameters that the original may lack.
    :param remarks: on parts of ours, how they came over.
    :raises CheckpointError: something is missing, unexpected or of another shape; names all.
    """
    expected = build_skeleton(config, num_tensors=len(state), path=path).state_dict()
    lacking = [key for key in may_lack if key in expected and key not in state]
    state = state | {key: torch.zeros(expected[key].shape) for key in lacking}
    found = compare(expected, state)
    problems.missing += found.missing
    problems.unexpected += found.unexpected
    problems.wrong |= found.wrong
    problems.raise_if_any(f"{path} does not hold the weights of {transfer.origin} that its configuration describes:")

    by_remark: dict[str, list[str]] = {}
    for key in expected:
        if key not in lacking:
            by_remark.setdefault((remarks or {}).get(part_of(key), ""), []).append(key)
    for remark, keys in by_remark.items():
        transfer.add("came over", keys, remark)
    transfer.add("new", lacking, "zero: the checkpoint has none")

    return Foreign(config=config, state={key: state[key] for key in expected}, transfer=transfer, lacking=lacking)


def fuse_weight_norm(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Replace the halves of weights that PyTorch's weight norm keeps apart by the weights.

    :returns: the weights, and the names of those that were two.
    """
    fused, names = dict(weights), []
    for length, direction in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        for key in [key for key in fused if key.endswith(f".{length}")]:
            prefix = key.removesuffix(length)
            if f"{prefix}{direction}" not in fused:
                continue
            g, v = fused.pop(key).float(), fused.pop(f"{prefix}{direction}").float()
            # The norm is over all dimensions along which the length is one.
            dims = [dim for dim in range(v.dim()) if g.dim() == v.dim() and g.size(dim) == 1]
            fused[f"{prefix}weight"] = v * (g / v.norm(dim=dims, keepdim=True))
            names.append(f"{prefix}weight")

    return fused, names


def split_fused(weights: Mapping[str, Tensor], fused: str, parts: Sequence[str]) -> dict[str, Tensor]:
    """Split projections that stand on top of each other in one tensor.

    :param fused: a regular expression for their names; ``parts`` are what to replace it by.
    """
    split: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if re.search(fused, key) is None or tensor.dim() == 0 or tensor.size(0) % len(parts):
            split[key] = tensor
            continue
        for part, chunk in zip(parts, tensor.chunk(len(parts)), strict=True):
            split[re.sub(fused, part, key)] = chunk.contiguous()
    return split


Reader = Callable[[Path, Mapping[str, Any], dict[str, Tensor]], Foreign]
"""Makes a model of ours of a path, for messages, settings and weights."""


def check_fixed(path: Path, settings: object, **required: object) -> None:
    """Make sure that settings have the only value that a model here can have; those that are not there have it.

    :raises CheckpointError: one has another.
    """
    for name, value in required.items():
        found = settings.get(name, value) if isinstance(settings, Mapping) else getattr(settings, name, value)
        if found != value:
            raise CheckpointError(f"{path}: `{name}` must be {value!r}, but is {found!r}; no model of this package has that.")
