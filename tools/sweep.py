"""Run recipes over a grid of settings and over seeds, and report the median of the best, as the papers do on GLUE.

    python tools/sweep.py recipes/text/sweeps/glue.yaml --output out/glue --config init.path=PRETRAINED \
        dataset.config_overrides.vocabulary=VOCABULARY

The file names recipes (relative to itself), settings to try, and seeds::

    recipes: [../finetune_glue_cola.yaml, ../finetune_glue_rte.yaml]
    grid: {optimizer.config.lr: [1.0e-5, 2.0e-5, 4.0e-5, 6.0e-5]}
    seeds: [1, 2, 3, 4, 5]

Each run is a `fairseq2 recipe train` in a process of its own, in OUTPUT/<recipe>/<setting>/seed_<n>. Its result is the best
validation of the run, by `regime.score_metric`, averaged over `validation.splits`. Of each setting the median over seeds counts,
of each recipe its best setting. Repeating a command skips the runs that are finished and continues those that are not; table.md
and table.json are written again after every run.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the tool beside this one
sys.path.insert(0, str(Path(__file__).parent.parent))  # also in a mere checkout

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import fairseq2.recipe  # noqa: F401  # before fairseq2's other modules, which need it
from ablate import describe_machine, run_command
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.config import StandardConfigMerger
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from d2v_plugin.verbs.inheritance import read_chain
from d2v_plugin.verbs.registration import METRICS

_DISPLAY_NAMES = {descriptor.name: descriptor for descriptor in METRICS}


@dataclass
class Cell:
    """A recipe with one setting of the grid."""

    recipe: Path
    setting: tuple[str, ...]
    """``key=value`` of each key of the grid."""

    scores: dict[int, float] = field(default_factory=dict)
    """Seed -> the best validation of the run."""

    failures: dict[int, str] = field(default_factory=dict)
    """Seed -> the last line of what the run said."""

    @property
    def name(self) -> str:
        """The setting in short: ``lr=1e-05``."""
        pairs = (word.split("=", 1) for word in self.setting)

        return ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in pairs).replace("/", "_")

    @property
    def median(self) -> float:
        return median(self.scores.values()) if self.scores else math.nan


@dataclass(frozen=True)
class Sweep:
    """What the file says."""

    recipes: Sequence[Path]
    grid: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]

    def cells(self) -> Iterator[Cell]:
        for recipe in self.recipes:
            for values in product(*self.grid.values()):
                words = (value if isinstance(value, str) else json.dumps(value) for value in values)
                yield Cell(recipe, tuple(f"{key}={word}" for key, word in zip(self.grid, words, strict=True)))


def main(words: Sequence[str] | None = None) -> int:
    """:returns: 0, or 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="YAML file with `recipes`, `grid` and `seeds`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every run")
    args = parser.parse_args(words)
    command = shlex.join(["python", "tools/sweep.py", *(sys.argv[1:] if words is None else words)])

    try:
        sweep = read_sweep(args.sweep)
        cells = list(sweep.cells())
        for seed in sweep.seeds:  # the first complete table after one seed
            for cell in cells:
                run(cell, seed, args.output, args.config)
                write_report(cells, args.output, command)
    except RecipeError as ex:
        parser.error(str(ex))

    print(format_table(cells))
    for cell in cells:
        for seed, failure in cell.failures.items():
            print(f"{cell.recipe.stem}, {cell.name}, seed {seed} failed: {failure}", file=sys.stderr)

    return 1 if any(cell.failures for cell in cells) else 0


def read_sweep(path: Path) -> Sweep:
    """:raises RecipeError: the file is no such YAML, or names a recipe that does not exist."""
    try:
        content = YAML(typ="safe", pure=True).load(path)
    except (OSError, YAMLError) as ex:
        raise RecipeError(f"{path} cannot be read: {ex}") from None
    known = {"recipes", "grid", "seeds"}
    if not isinstance(content, dict) or set(content) != known or not all(content.values()):
        raise RecipeError(f"{path} must name `recipes`, `grid` and `seeds`, none of them empty, and nothing else.")
    grid = content["grid"]
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise RecipeError(f"{path}: `grid` must hold a list of values for each setting, but is {grid}.")
    recipes = [path.parent / name for name in content["recipes"]]
    if missing := [str(recipe) for recipe in recipes if not recipe.is_file()]:
        raise RecipeError(f"{path}: there is no recipe {', '.join(missing)}.")

    return Sweep(recipes, grid, content["seeds"])


def run(cell: Cell, seed: int, output: Path, config: Sequence[str]) -> None:
    """Train one cell with one seed, unless that is done, and note what it reached.

    :raises RecipeError: its folder holds a run with other settings, or the recipe has no score.
    """
    recipe = merge_bases(cell.recipe)
    overrides = [*cell.setting, *config]
    folder = output / cell.recipe.stem / cell.name / f"seed_{seed}"
    settings = {"recipe": recipe, "config": overrides}
    noted = folder / "settings.json"
    if noted.is_file() and json.loads(noted.read_text()) != settings:
        raise RecipeError(f"{folder} holds a run with other settings; delete it, or choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(settings, indent=2) + "\n")

    if not (folder / "summary.json").is_file():
        print(f"{cell.recipe.stem}, {cell.name}, seed {seed} …", flush=True)
        words = ["recipe", "train", "--no-rich", "--config-file", str(cell.recipe), str(folder)]
        words += ["--config", f"common.seed={seed}", *overrides]
        if (error := run_command(words, folder / "log.txt")) is not None:
            cell.failures[seed] = error
            return

    cell.scores[seed] = read_best(folder, recipe)


def merge_bases(path: Path) -> dict[str, Any]:
    """The recipe with what it inherits."""
    root, heirs = read_chain(path)
    recipe: dict[str, Any] = YAML(typ="safe", pure=True).load(root)
    for changes in heirs:
        recipe = StandardConfigMerger().merge(recipe, changes)  # type: ignore[assignment]

    return recipe


def read_best(folder: Path, recipe: Mapping[str, Any]) -> float:
    """The best validation of a finished run: the score of each, averaged over the splits.

    :raises RecipeError: the recipe names no score, or no validation has it.
    """
    metric = recipe.get("regime", {}).get("score_metric")
    if metric not in _DISPLAY_NAMES:
        raise RecipeError(f"`regime.score_metric` must name the score to compare, but is {metric}.")
    title, higher_better = _DISPLAY_NAMES[metric].display_name, _DISPLAY_NAMES[metric].higher_better
    splits = recipe.get("validation", {}).get("splits", ["valid"])

    by_step: dict[int, list[float]] = {}
    for split in splits:
        path = folder / "metrics" / "valid" / f"{split}.jsonl"
        for line in path.read_text().splitlines() if path.is_file() else ():
            entry = json.loads(line)
            if title in entry:
                # A run that was resumed may have validated a step twice; the last one counts.
                scores = by_step.setdefault(entry["Step"], [])
                scores[splits.index(split) :] = [entry[title]]
    values = [mean(scores) for scores in by_step.values() if len(scores) == len(splits)]
    if not values:
        raise RecipeError(f"{folder} has no validation with `{metric}`; set `regime.validate_every_n_steps`.")

    return max(values) if higher_better else min(values)


def choose_best(cells: Sequence[Cell]) -> Cell:
    """The setting of a recipe with the best median."""
    metric = merge_bases(cells[0].recipe)["regime"]["score_metric"]
    sign = 1.0 if _DISPLAY_NAMES[metric].higher_better else -1.0

    return max(cells, key=lambda cell: -math.inf if math.isnan(cell.median) else sign * cell.median)


def group_cells(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.recipe.stem, []).append(cell)

    return groups


def write_report(cells: Sequence[Cell], output: Path, command: str) -> None:
    """Write ``table.md`` and ``table.json``."""
    machine = describe_machine()
    text = "\n".join([f"Command: `{command}`", "", f"Machine: {machine}", "", format_table(cells)])
    output.joinpath("table.md").write_text(text + "\n", encoding="utf-8")
    rows = [
        {
            "recipe": name,
            "best": choose_best(members).name,
            "median": _as_json(choose_best(members).median),
            "settings": [
                {"name": c.name, "median": _as_json(c.median), "scores": c.scores, "failures": c.failures} for c in members
            ],
        }
        for name, members in group_cells(cells).items()
    ]
    content = {"command": command, "machine": machine, "rows": rows}
    output.joinpath("table.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def format_table(cells: Sequence[Cell]) -> str:
    """A row for each recipe: the median over seeds of every setting, the best in bold and again in the last column; the last
    row is the mean of that."""
    groups = group_cells(cells)
    names = [cell.name for cell in next(iter(groups.values()))]
    lines = ["| | " + " | ".join([*names, "median of the best"]) + " |", "|---|" + "---:|" * (len(names) + 1)]
    for name, members in groups.items():
        best = choose_best(members)
        shown = [f"**{_format(cell)}**" if cell is best else _format(cell) for cell in members]
        lines.append(f"| {name} | " + " | ".join([*shown, _format(best)]) + " |")
    bests = [choose_best(members).median for members in groups.values()]
    overall = mean(bests)
    lines.append("| mean |" + " |" * len(names) + (" n/a |" if math.isnan(overall) else f" {100 * overall:.1f} |"))

    return "\n".join(lines)


def _format(cell: Cell) -> str:
    runs = f"{len(cell.scores)}" + (f", {len(cell.failures)} failed" if cell.failures else "")

    return "n/a" if math.isnan(cell.median) else f"{100 * cell.median:.1f} ({runs})"


def _as_json(value: float) -> float | None:
    return None if math.isnan(value) else value


if __name__ == "__main__":
    sys.exit(main())
