"""The report of a study: tables, times to equal quality, plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tools.experiments.plots import draw_report
from tools.experiments.runner import format_row

OURS = "data2vec 2.0"

# Two-sided 95 % quantiles of Student's t distribution, by degrees of freedom.
STUDENT_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}

UNITS = {"time": "seconds_per_update", "flops": "gflops_per_update"}

Curve = Sequence[tuple[float, float]]
"""(seconds or GFLOPs, accuracy), beginning with the model before training"""


def write_report(output: Path, *, command: str, machine: str) -> None:
    """Write ``report.md``, ``report.json`` and ``PART.png`` from the ``numbers.json`` of all parts in ``output``."""
    parts = {path.parent.name: json.loads(path.read_text()) for path in sorted(output.glob("*/numbers.json"))}
    hours = sum(part["hours"] for part in parts.values())
    lines = [
        "# What features are worth as time passes",
        "",
        f"Command: `{command}`",
        "",
        f"Machine: {machine}. Cost: {hours:.1f} hours, the clocks of all runs added up.",
        "",
        "Each run trains for as many updates as one idle core makes in the seconds named. Accuracies and error rates are in "
        "percent: mean and 95 % confidence interval over seeds (Student's t). How much sooner: lowest to highest over the seeds.",
    ]
    report: dict[str, Any] = {"command": command, "machine": machine, "hours": hours, "parts": {}}
    for name, part in parts.items():
        ratios = {unit: compare_costs(part, key) for unit, key in UNITS.items()}
        report["parts"][name] = {**part, "ratios": ratios}
        lines += ["", f"## {name.capitalize()}: {part['title']}; {part['seconds']:g} seconds", "", *format_methods(part)]
        lines += ["", *format_ratios(part, ratios)]
        lines += ["", f"![{name}]({name}.png)", "", *format_searches(part)]
        lines += ["", "Repeat a row (seeds are `common.seed`):", "", *format_commands(part)]
    output.joinpath("report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output.joinpath("report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    draw_report(output / "report.json")


def format_methods(part: Mapping[str, Any]) -> list[str]:
    """One row per method, and one for what nobody trained."""
    lines = [
        f"| | chosen setting | updates | ms per update | GFLOP per update | linear probe | k-NN | {part['fine_tuned_title']} |",
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
        lines.append(format_row(cells))
    untrained = part["methods"][0]["curves"].values()
    cells = [format_interval([curve[probe][0][1] for curve in untrained]) for probe in ("linear", "knn")]
    cells.append(format_interval(list(part["from_scratch"].values())))
    lines.append(f"| random initialisation | | 0 | | | {' | '.join(cells)} |")

    return lines


def compare_costs(part: Mapping[str, Any], key: str) -> dict[str, Any]:
    """How many times less data2vec 2.0 needs to reach the mean final linear probe of every other method, and the other way round.

    :param key: what is counted, ``seconds_per_update`` or ``gflops_per_update``.
    :returns: by method; ``ours`` and ``theirs`` have a ratio for each seed, None = it does not get there.
    """
    curves = {method["method"]: as_curves(method, method[key]) for method in part["methods"]}
    if OURS not in curves:
        return {}
    own = curves.pop(OURS)
    floor, own_goal = (mean(curve[i][1] for curve in own) for i in (0, -1))

    ratios: dict[str, Any] = {}
    for name, others in curves.items():
        goal = mean(curve[-1][1] for curve in others)
        ratios[name] = {
            "goal": goal,
            "above_floor": goal > floor,
            "own_above_floor": own_goal > floor,
            "ours": [gain_of(curve, goal, others[0][-1][0]) for curve in own],
            "theirs": [gain_of(curve, own_goal, own[0][-1][0]) for curve in others],
            "published": part["published"].get(name),
        }

    return ratios


def format_ratios(part: Mapping[str, Any], ratios: Mapping[str, Any]) -> list[str]:
    """The claim as a table, whichever way it goes."""
    lines = [
        f"| | its final linear probe | {OURS} gets there | in less time | with fewer FLOPs | it gets to that of {OURS} "
        "| in less time | published, in time |",
        "|---|---:|---|---:|---:|---|---:|---:|",
    ]
    for name, time in ratios["time"].items():
        goal = f"{100 * time['goal']:.1f}" + ("" if time["above_floor"] else " (no better than random initialisation)")
        cells = [
            name,
            goal,
            format_reached(time["ours"]),
            format_range(time["ours"]) if time["above_floor"] else "-",
            format_range(ratios["flops"][name]["ours"]) if time["above_floor"] else "-",
            format_reached(time["theirs"]),
            format_range(time["theirs"]) if time["own_above_floor"] else "-",
            "-" if time["published"] is None else f"{time['published']:g} times",
        ]
        lines.append(format_row(cells))

    return lines


def format_reached(ratios: Sequence[float | None]) -> str:
    return f"{sum(ratio is not None for ratio in ratios)} of {len(ratios)} runs"


def format_range(ratios: Sequence[float | None]) -> str:
    reached = [ratio for ratio in ratios if ratio is not None]

    return f"{min(reached):.1f} to {max(reached):.1f} times" if reached else "-"


def format_searches(part: Mapping[str, Any]) -> list[str]:
    """What every method was tuned on."""
    lines = ["| tried | | linear probe |", "|---|---|---:|"]
    for method in part["methods"]:
        for setting, score in method["search"].items():
            lines.append(f"| {method['method']} | `{setting}` | {100 * score:.1f} |")

    return lines


def format_commands(part: Mapping[str, Any]) -> list[str]:
    """What trains the row of each method anew."""
    return [f"    {method['command']}" for method in part["methods"]]


def as_curves(method: Mapping[str, Any], unit: float) -> list[list[tuple[float, float]]]:
    """The linear probe of each seed over what ``unit`` counts per update."""
    return [[(step * unit, score) for step, score in curve["linear"]] for curve in method["curves"].values()]


def gain_of(curve: Curve, goal: float, total: float) -> float | None:
    """How many times less than ``total`` a curve needs to reach a quality; None = it does not."""
    cost = cost_of(curve, goal)

    return None if cost is None else total / cost


def cost_of(curve: Curve, goal: float) -> float | None:
    """Where a curve first reaches a quality after its beginning, linearly between its points; None = never."""
    for (x0, y0), (x, y) in pairwise(curve):
        if y >= goal:
            return x if y0 >= goal else x0 + (x - x0) * (goal - y0) / (y - y0)

    return None


def format_interval(scores: Sequence[float]) -> str:
    """Mean ± half of the 95 % confidence interval, in percent."""
    if not scores:
        return "n/a"
    if len(scores) == 1:
        return f"{100 * scores[0]:.1f}"
    half = STUDENT_T.get(len(scores) - 1, 1.96) * stdev(scores) / len(scores) ** 0.5

    return f"{100 * mean(scores):.1f} ± {100 * half:.1f}"
