"""Run recipes over a grid of settings and over seeds, and report the median of the best, as the papers do on GLUE.

    python -m tools.experiments.sweep recipes/text/sweeps/glue.yaml --output out/glue --config init.path=PRETRAINED \
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

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from statistics import mean, median
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from typing_extensions import override

from tools.experiments import runner
from tools.experiments.runner import Entry, format_row, read_lines

# isort: split
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.recipe.error import RecipeError

from d2v_plugin.verbs.registration import METRICS


@dataclass(eq=False)
class Cell(Entry):
    """A recipe with one setting of the grid, and what its runs reached."""

    scores: dict[int, float] = field(default_factory=dict)
    """Seed -> the best validation of the run."""

    @property
    def setting_name(self) -> str:
        """The setting in short: ``lr=1e-05``."""
        pairs = (word.split("=", 1) for word in self.setting)

        return ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in pairs).replace("/", "_")

    @property
    @override
    def name(self) -> str:
        return f"{self.path.stem}, {self.setting_name}"

    @property
    def score(self) -> MetricDescriptor:
        """What is compared.

        :raises RecipeError: the recipe names none.
        """
        name = self.recipe.get("regime", {}).get("score_metric")
        for descriptor in METRICS:
            if descriptor.name == name:
                return descriptor
        raise RecipeError(f"`regime.score_metric` must name the score to compare, but is {name}.")

    @override
    def take(self, seed: int, folder: Path) -> None:
        self.scores[seed] = read_best(folder, self)

    @property
    def median(self) -> float | None:
        """The median of the scores over the seeds; None without any."""
        return median(self.scores.values()) if self.scores else None

    @property
    def rank(self) -> float:
        """Its place among the settings of a recipe: the highest is the best."""
        if self.median is None:
            return -math.inf

        return self.median if self.score.higher_better else -self.median


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep's file."""

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
    parser = runner.make_parser(__doc__)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="YAML file with `recipes`, `grid` and `seeds`")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every run")
    args = parser.parse_args(words)
    command = runner.format_command("sweep", words)

    try:
        sweep = read_sweep(args.sweep)
        cells = list(sweep.cells())

        return runner.run_all(cells, sweep.seeds, args.output, lambda: report(cells, args.output, command), config=args.config)
    except RecipeError as ex:
        parser.error(str(ex))


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


def read_best(folder: Path, cell: Cell) -> float:
    """The best validation of a finished run: the score of each, averaged over the splits.

    :raises RecipeError: the recipe names no score, or no validation has it.
    """
    score, splits = cell.score, cell.recipe.get("validation", {}).get("splits", ["valid"])
    by_step: dict[int, list[float]] = {}
    for number, split in enumerate(splits):
        path = folder / "metrics" / "valid" / f"{split}.jsonl"
        for line in read_lines(path) if path.is_file() else ():
            if score.display_name in line:
                # A run that was resumed may have validated a step twice; the last one counts.
                by_step.setdefault(line["Step"], [])[number:] = [line[score.display_name]]
    values = [mean(scores) for scores in by_step.values() if len(scores) == len(splits)]
    if not values:
        raise RecipeError(f"{folder} has no validation with `{score.name}`; set `regime.validate_every_n_steps`.")

    return max(values) if score.higher_better else min(values)


def group_cells(cells: Sequence[Cell]) -> list[tuple[str, list[Cell], Cell]]:
    """Of each recipe its name, its cells, and the one with the best median."""
    groups = [(name, list(members)) for name, members in groupby(cells, key=lambda cell: cell.path.stem)]

    return [(name, members, max(members, key=lambda cell: cell.rank)) for name, members in groups]


def report(cells: Sequence[Cell], output: Path, command: str) -> str:
    """Write ``table.md`` and ``table.json``.

    :returns: the table.
    """
    table = format_table(cells)
    rows = [
        {
            "recipe": name,
            "best": best.setting_name,
            "median": best.median,
            "settings": [
                {"name": cell.setting_name, "median": cell.median, "scores": cell.scores, "failures": cell.failures}
                for cell in members
            ],
        }
        for name, members, best in group_cells(cells)
    ]
    runner.write_tables(output, command, table, rows)

    return table


def format_table(cells: Sequence[Cell]) -> str:
    """A row for each recipe: the median over seeds of every setting, the best in bold and again in the last column; the last
    row is the mean of that."""
    groups = group_cells(cells)
    names = [cell.setting_name for cell in groups[0][1]]
    lines = ["| | " + " | ".join([*names, "median of the best"]) + " |", "|---|" + "---:|" * (len(names) + 1)]
    for name, members, best in groups:
        shown = [f"**{format_score(cell)}**" if cell is best else format_score(cell) for cell in members]
        lines.append(format_row([name, *shown, format_score(best)]))
    bests = [best.median for _, _, best in groups if best.median is not None]
    overall = f"{100 * mean(bests):.1f}" if len(bests) == len(groups) else "n/a"
    lines.append("| mean |" + " |" * len(names) + f" {overall} |")

    return "\n".join(lines)


def format_score(cell: Cell) -> str:
    """The median in percent and the number of runs that it is of."""
    runs = f"{len(cell.scores)}" + (f", {len(cell.failures)} failed" if cell.failures else "")

    return "n/a" if cell.median is None else f"{100 * cell.median:.1f} ({runs})"


if __name__ == "__main__":
    sys.exit(main())
