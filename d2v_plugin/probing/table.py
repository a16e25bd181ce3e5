"""The accuracies of probes as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from d2v_plugin.probing.base import metric_name, overall_metrics


def format_accuracies(accuracies: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table with a line for each kind of features and, if there are several, for each layer.

    :param accuracies: by what was measured, such as ``pre-trained``, then by metric; see :func:`probe_scores`.
    :returns: its lines; none if nothing was measured.
    """
    if not accuracies:
        return []

    probes = overall_metrics(metric for scores in accuracies.values() for metric in scores)

    lines: dict[str, list[float | None]] = {}
    for name, scores in accuracies.items():
        layers = _find_layers(scores, probes)
        for layer in layers:
            lines[f"{name}, layer {layer}"] = [scores.get(f"{probe}_layer{layer}") for probe in probes]
        lines[f"{name}, best layer" if layers else name] = [scores.get(probe) for probe in probes]

    width = max(len(line) for line in ("accuracy", *lines))

    def row(name: str, cells: Sequence[str]) -> str:
        return f"{name:<{width}}" + "".join(f"  {cell:>15}" for cell in cells)

    cells = {name: ["" if value is None else f"{value:.3f}" for value in values] for name, values in lines.items()}

    return [row("accuracy", probes), *(row(name, values) for name, values in cells.items())]


def _find_layers(scores: Mapping[str, float], probes: Sequence[str]) -> list[int]:
    prefix = metric_name(probes[0].removeprefix("probe_")) + "_layer"

    return [int(metric.removeprefix(prefix)) for metric in scores if metric.startswith(prefix)]
