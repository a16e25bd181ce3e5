"""Learning rates as metrics: one number, and one for each group of layers where they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from d2v_plugin.training.recorders.names import LR


def name_rates(values: Mapping[str, object], names: Callable[[], Sequence[str]]) -> dict[str, object]:
    """Replace the list of the rates of all groups of the optimizer.

    :param values: metrics, perhaps with ``lr``: a number, or one for each group.
    :param names: of each group, the layers in it.
    :returns: with the highest rate as ``lr``, and ``lr/<layers>`` for each, if they are not all the same.
    """
    rates = values.get(LR)
    if not isinstance(rates, Sequence) or isinstance(rates, str):
        return dict(values)
    rates = [float(rate) for rate in rates]
    named = dict(zip(names(), rates, strict=True))
    parts = {f"{LR}/{name}": rate for name, rate in named.items()} if len(named) > 1 else {}

    return {**values, LR: max(rates), **parts}
