"""Accuracies of probes as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from d2v_plugin.core.text import format_table
from d2v_plugin.probing.base import overall_metrics


def format_accuracies(accuracies: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lay out a table with a line for each kind of features and, if there are several, for each layer.

    :param accuracies: by what was measured, such as ``pre-trained``, then by metric; see :func:`probe_scores`.
    :returns: its lines; none if nothing was measured.
    """
    if not accuracies:
        return []

    probes = overall_metrics(metric for scores in accuracies.values() for metric in scores)

    def row(name: str, scores: Mapping[str, float], suffix: str = "") -> list[str]:
        values = (scores.get(f"{probe}{suffix}") for probe in probes)
        return [name, *("" if value is None else f"{value:.3f}" for value in values)]

    rows = []
    for name, scores in accuracies.items():
        layers = _find_layers(scores, probes, "")
        rows += [row(f"{name}, layer {layer}", scores, f"_layer{layer}") for layer in layers]
        rows.append(row(f"{name}, best layer" if layers else name, scores))
        weighed = _find_layers(scores, probes, "_weight")
        rows += [row(f"{name}, weight of layer {layer}", scores, f"_layer{layer}_weight") for layer in weighed]

    return format_table(["accuracy", *(f"{probe:>15}" for probe in probes)], rows)


def _find_layers(scores: Mapping[str, float], probes: Sequence[str], suffix: str) -> list[int]:
    pattern = re.compile(rf"{probes[0]}_layer(\d+){suffix}")

    return [int(found[1]) for metric in scores if (found := pattern.fullmatch(metric)) is not None]
