"""Plots of ablations, studies and benchmarks, drawn from their JSON; each says on which machine it was measured.

    python -m tools.experiments.plots recipes/ablations/table.json recipes/study/report.json recipes/speed/sweeps.json

draws them anew beside the files, as the tools do that write the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2v_plugin.probing.base import overall_metrics

DPI = 100  # twelve inches are 1,200 pixels

MODALITIES = {"image": "Images", "audio": "Speech", "text": "Text"}
PROBES = {"probe_linear": "Linear probe", "probe_knn": "k-NN"}
MARKERS = "osD^v"
GROUPS = {"cls_loss": "CLS loss", "alibi": "ALiBi"}

SWEPT = {
    "views": "Views of each sample",
    "batch": "Samples",
    "seconds": "Length of each sample (s)",
    "tokens": "Tokens of each sample",
}
COSTS = (("seconds_per_update", "Time of one core (s)"), ("gflops_per_update", "Computation (GFLOP)"))


def draw_table(path: Path) -> Path:
    """Draw ``plot.png`` of an ablation: a column for each modality, a panel for each group; bars span the runs."""
    table = json.loads(path.read_text())
    columns: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in table["rows"]:
        columns.setdefault(row["modality"], {}).setdefault(row["group"], []).append(row)
    probes = overall_metrics(probe for row in table["rows"] for probe in row["mean"])

    heights = [sum(len(rows) + 1.2 for rows in groups.values()) for groups in columns.values()]
    figure = Figure(figsize=(12 if len(columns) > 1 else 8, 1.6 + 0.3 * max(heights)), layout="constrained")
    figure.suptitle(f"Accuracy of frozen features: mean, and lowest to highest run\n{table['machine']}", fontsize=12)
    for part, (modality, groups), height in zip(
        figure.subfigures(1, len(columns), squeeze=False)[0], columns.items(), heights, strict=True
    ):
        part.suptitle(MODALITIES.get(modality, modality.capitalize()), fontsize=12, fontweight="bold")
        # Rows are as high in each column: the shorter ones end with an empty panel.
        ratios = [len(rows) + 1.2 for rows in groups.values()] + ([rest] if (rest := max(heights) - height) > 0 else [])
        panels = part.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for panel, (group, rows) in zip(panels, groups.items(), strict=False):
            _draw_group(panel, rows, probes)
            panel.set_title(GROUPS.get(group, group.replace("_", " ").capitalize()), loc="left", fontsize=11)
        last = panels[len(groups) - 1]
        last.set_xlabel("Accuracy (%)")
        last.tick_params(labelbottom=True)
        for panel in panels[len(groups) :]:
            panel.set_axis_off()
    if probes:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(probes))
    figure.savefig(target := path.parent / "plot.png", dpi=DPI)

    return target


def _draw_group(panel: Axes, rows: Sequence[Mapping[str, Any]], probes: Sequence[str]) -> None:
    for i, probe in enumerate(probes):
        for y, row in enumerate(rows):
            runs = [100 * found[probe] for found in row["accuracies"].values() if probe in found]
            if not runs:
                continue
            height = y + 0.3 * (i / max(1, len(probes) - 1) - 0.5)
            panel.plot([min(runs), max(runs)], [height, height], color=f"C{i}", linewidth=2, alpha=0.5)
            label = PROBES.get(probe, probe.removeprefix("probe_")) if y == 0 else None
            panel.plot(mean(runs), height, MARKERS[i % len(MARKERS)], color=f"C{i}", markersize=5, label=label)
    panel.set_yticks(range(len(rows)), [_capitalize(row["title"]) for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlim(0, 100)
    panel.grid(axis="x", alpha=0.3)


def draw_report(path: Path) -> list[Path]:
    """Draw ``PART.png`` for each part of a study: accuracy over time and FLOPs, means thick and single runs thin."""
    report = json.loads(path.read_text())

    return [draw_part(part, report["machine"], path.parent / f"{name}.png") for name, part in report["parts"].items()]


def draw_part(part: Mapping[str, Any], machine: str, path: Path) -> Path:
    """Draw a part of a study."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (cost, label) in zip(panels, COSTS, strict=True):
        for i, method in enumerate(part["methods"]):
            curves = np.array([curve["linear"] for curve in method["curves"].values()])
            x, y = curves[0, :, 0] * method[cost], 100 * curves[:, :, 1]
            panel.plot(x, y.mean(axis=0), f"{MARKERS[i]}-", color=f"C{i}", markersize=4, label=_capitalize(method["method"]))
            panel.plot(x, y.T, color=f"C{i}", linewidth=0.8, alpha=0.4)
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("Accuracy of the linear probe (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(part["methods"]))
    figure.suptitle(f"{_capitalize(part['title'])}\n{machine}", fontsize=12)
    figure.savefig(path, dpi=DPI)

    return path


def draw_sweeps(path: Path) -> list[Path]:
    """Draw ``PARAMETER.png`` for each sweep of a benchmark."""
    found = json.loads(path.read_text())
    sweeps: Mapping[str, Sequence[Mapping[str, Any]]] = found["sweeps"]

    return [draw_sweep(rows, name, path.parent / f"{name}.png", machine=found["machine"]) for name, rows in sweeps.items()]


def draw_sweep(rows: Sequence[Mapping[str, Any]], parameter: str, path: Path, *, machine: str) -> Path:
    """Draw seconds and memory over the swept parameter; the seconds of one view, too, where that is it."""
    values = [row[parameter] for row in rows]
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(values, [row["seconds_per_update"] for row in rows], "o-", label="Update")
    if parameter == "views":
        left.plot(values, [row["seconds_per_update"] / row["views"] for row in rows], "s--", label="Update, for one view")
        left.legend()
    right.plot(values, [row["peak_memory_gib"] for row in rows], "o-", color="C1")
    for axes, label in ((left, "Time of an update (s)"), (right, "Peak memory (GiB)")):
        axes.set(xlabel=SWEPT[parameter], ylabel=label)
        axes.set_xticks(values)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0, top=1.08 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    figure.suptitle(f"Cost of an update of {rows[0]['arch']} in {rows[0]['precision']}\n{machine}", fontsize=12)
    figure.savefig(path, dpi=DPI)

    return path


def _capitalize(text: str) -> str:
    """Begin with a capital, but for the names of methods."""
    return text if text.startswith(("data2vec", "wav2vec", "k-NN")) else text[:1].upper() + text[1:]


DRAWERS = {"table.json": draw_table, "report.json": draw_report, "sweeps.json": draw_sweeps}


def main(words: Sequence[str] | None = None) -> int:
    """:returns: 0, or 2 if a file is none of those."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=" or ".join(DRAWERS))
    for path in parser.parse_args(words).files:
        if path.name not in DRAWERS or not path.is_file():
            parser.error(f"{path} is no {' or '.join(DRAWERS)} that exists.")
        print(f"Drawn from {path}: {DRAWERS[path.name](path)}")

    return 0


if __name__ == "__main__":
    sys.exit(main())
