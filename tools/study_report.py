"""The report of a study: tables, times to equal quality, plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure

OURS = "data2vec 2.0"

# Two-sided 95 % quantiles of Student's t distribution, by degrees of freedom.
STUDENT_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}

Curve = Sequence[tuple[float, float]]
"""(seconds or GFLOPs, accuracy)"""


def write_report(output: Path, *, command: str, machine: str, seconds: float) -> None:
    """Write ``report.md``, ``report.json`` and ``PART.png`` from the ``numbers.json`` of all parts in ``output``."""
    parts = {path.parent.name: json.loads(path.read_text()) for path in sorted(output.glob("*/numbers.json"))}
    lines = [
        "# What features are worth as time passes",
        "",
        f"Command: `{command}`",
        "",
        f"Machine: {machine}. Each run trains for {seconds:g} seconds of one core; accuracies in percent, mean and 95 % "
        "confidence interval over seeds (Student's t).",
    ]
    report: dict[str, Any] = {"command": command, "machine": machine, "seconds": seconds, "parts": {}}
    for name, part in parts.items():
        ratios = compare_times(part)
        report["parts"][name] = {**part, "ratios": ratios}
        lines += ["", f"## {name.capitalize()}: {part['title']}", "", *format_methods(part), "", *format_ratios(part, ratios)]
        lines += ["", f"![{name}]({name}.png)"]
        draw_curves(part, output / f"{name}.png")
    output.joinpath("report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output.joinpath("report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def format_methods(part: Mapping[str, Any]) -> list[str]:
    """One row per method."""
    lines = [
        "| | chosen setting | updates | ms per update | GFLOP per update | linear probe | k-NN | fine-tuned |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for method in part["methods"]:
        curves = method["curves"].values()
        updates = next(iter(curves))["linear"][-1][0]
        cells = [
            method["method"],
            f"`{' '.join(method['setting'])}`",
            f"{updates:,}",
            f"{1000 * method['seconds_per_update']:.0f}",
            f"{method['gflops_per_update']:.2f}",
            *(format_interval([curve[probe][-1][1] for curve in curves]) for probe in ("linear", "knn")),
            format_interval(list(method["fine_tuned"].values())),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(f"| from scratch | | | | | | | {format_interval(list(part['from_scratch'].values()))} |")

    return lines


def compare_times(part: Mapping[str, Any]) -> dict[str, Any]:
    """How much sooner data2vec 2.0 reaches the final linear probe of every other method, seed by seed; None = it does not."""
    curves = {method["method"]: as_curves(method, method["seconds_per_update"]) for method in part["methods"]}
    if OURS not in curves:
        return {}
    ratios: dict[str, Any] = {}
    for name, others in curves.items():
        if name == OURS:
            continue
        goal = mean(curve[-1][1] for curve in others)
        total = mean(curve[-1][0] for curve in others)
        times = [time_to(curve, goal) for curve in curves[OURS]]
        own_goal = mean(curve[-1][1] for curve in curves[OURS])
        ratios[name] = {
            "goal": goal,
            "ours": [None if time is None else total / time for time in times],
            "theirs": [None if time is None else total / time for time in (time_to(curve, own_goal) for curve in others)],
            "published": part["published"].get(name),
        }

    return ratios


def format_ratios(part: Mapping[str, Any], ratios: Mapping[str, Any]) -> list[str]:
    """The claim in words, whichever way it goes."""
    lines = []
    for name, ratio in ratios.items():
        reached = [value for value in ratio["ours"] if value is not None]
        text = f"- {OURS} reaches the final linear probe of {name} ({100 * ratio['goal']:.1f} %) "
        if reached:
            text += f"in {len(reached)} of {len(ratio['ours'])} runs, {min(reached):.1f} to {max(reached):.1f} times sooner"
        else:
            text += "in none of its runs"
            behind = [value for value in ratio["theirs"] if value is not None]
            if behind:
                text += f"; {name} reaches that of {OURS} {min(behind):.1f} to {max(behind):.1f} times sooner"
        if ratio["published"] is not None:
            text += f" (published, at full size: {ratio['published']:g})"
        lines.append(text + ".")

    return lines


def as_curves(method: Mapping[str, Any], unit: float) -> list[list[tuple[float, float]]]:
    """The linear probe of each seed over what ``unit`` counts per update."""
    return [[(step * unit, score) for step, score in curve["linear"]] for curve in method["curves"].values()]


def time_to(curve: Curve, goal: float) -> float | None:
    """When a curve first reaches a quality, linearly between its points; None = never."""
    for i, (x, y) in enumerate(curve):
        if y >= goal:
            if i == 0 or y == curve[i - 1][1]:
                return x
            x0, y0 = curve[i - 1]
            return x0 + (x - x0) * (goal - y0) / (y - y0)

    return None


def format_interval(scores: Sequence[float]) -> str:
    """Mean ± half of the 95 % confidence interval, in percent."""
    if not scores:
        return "n/a"
    if len(scores) == 1:
        return f"{100 * scores[0]:.1f}"
    half = STUDENT_T.get(len(scores) - 1, 1.96) * stdev(scores) / len(scores) ** 0.5

    return f"{100 * mean(scores):.1f} ± {100 * half:.1f}"


def draw_curves(part: Mapping[str, Any], path: Path) -> None:
    """Quality against time and against FLOPs: the mean of the seeds, and the range of the single runs."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    units = (("seconds_per_update", "seconds of one core"), ("gflops_per_update", "GFLOP"))
    for panel, (unit, label) in zip(panels, units, strict=True):
        for i, method in enumerate(part["methods"]):
            curves = np.array(as_curves(method, method[unit]))
            x, y = curves[0, :, 0], 100 * curves[:, :, 1]
            panel.plot(x, y.mean(axis=0), "o-", color=f"C{i}", markersize=3, label=method["method"])
            panel.fill_between(x, y.min(axis=0), y.max(axis=0), color=f"C{i}", alpha=0.2, linewidth=0)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("linear probe, %")
    panels[0].legend(loc="lower right")
    figure.suptitle(part["title"], fontsize="medium")
    figure.savefig(path, dpi=110)
