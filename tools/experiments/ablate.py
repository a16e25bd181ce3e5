"""Run recipes over seeds and compare them: a table in Markdown and JSON, and a plot.

    python -m tools.experiments.ablate recipes/ablations/views recipes/ablations/cls_loss --seeds 1 2 3 --output out/ablations

Rows are recipe files, or folders of them. Every row is trained once per seed by `fairseq2 recipe train` in a process of its own,
in OUTPUT/<folder>/<row>/seed_<n>; rows that come to the same recipe share their runs. Repeating a command skips the runs that are
finished and continues those that are not; the table is written again after every run.

The rows of recipes/ablations inherit from a small base. On another one, `--base recipes/image/pretrain_base.yaml`, the same rows
are the ablations at full size.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ruamel.yaml import YAML
from typing_extensions import override

from tools.experiments import runner
from tools.experiments.runner import Entry, format_row, merge_recipe

# isort: split
from fairseq2.recipe.error import RecipeError

from d2v_plugin.probing.base import overall_metrics
from d2v_plugin.verbs.inheritance import BASE, read_chain


@dataclass(eq=False)
class Row(Entry):
    """One recipe of the comparison, and what its runs reached."""

    base: Path | None = None
    """The recipe that it inherits from, instead of the one that it names."""

    accuracies: dict[int, dict[str, float]] = field(default_factory=dict)
    """Seed -> probe -> accuracy, from 0 to 1."""

    seconds: dict[int, float] = field(default_factory=dict)
    """Seed -> seconds of training."""

    @property
    def group(self) -> str:
        """The folder of the recipe: rows of a group share a part of the table and a panel of the plot."""
        return self.path.resolve().parent.name

    @property
    @override
    def name(self) -> str:
        return f"{self.group}/{self.path.stem}"

    @property
    def title(self) -> str:
        """The first line of the recipe if it is a comment, else its name."""
        line = self.path.read_text(encoding="utf-8").split("\n", 1)[0]

        return line.lstrip("# ") if line.startswith("#") else self.path.stem

    @property
    def modality(self) -> str:
        """What it learns from, by the name of its task: rows of one modality share axes of the plot."""
        return str(self.recipe.get("task", {}).get("name", "")).split("_")[0]

    @cached_property
    @override
    def recipe(self) -> dict[str, Any]:
        return merge_recipe(self.path) if self.base is None else merge_recipe(self.base, self.own_changes())

    @override
    def prepare(self, folder: Path) -> Path:
        if self.base is None:
            return self.path
        heir = folder / "recipe.yaml"
        YAML(typ="safe", pure=True).dump({BASE: str(self.base.resolve()), **self.own_changes()}, heir)

        return heir

    def own_changes(self) -> Mapping[str, Any]:
        """The changes that stand in the row itself.

        :raises RecipeError: it has no base that another could take the place of.
        """
        _, heirs = read_chain(self.path)
        if not heirs:
            raise RecipeError(f"{self.path} has no `{BASE}` that --base could take the place of.")

        return heirs[-1]

    @override
    def take(self, seed: int, folder: Path) -> None:
        self.accuracies[seed] = json.loads((folder / "summary.json").read_text())["accuracies"].get("pre-trained", {})
        self.seconds[seed] = runner.read_seconds(folder)

    def summarize(self, probe: str) -> tuple[float, float]:
        """Mean and sample standard deviation of an accuracy over the seeds; NaN where there are too few."""
        values = self.values(probe)

        return mean(values) if values else math.nan, stdev(values) if len(values) > 1 else math.nan

    def values(self, probe: str) -> list[float]:
        """The accuracy of each run that has it."""
        return [accuracies[probe] for accuracies in self.accuracies.values() if probe in accuracies]


def main(words: Sequence[str] | None = None) -> int:
    """:returns: 0, or 1 if a run failed."""
    parser = runner.make_parser(__doc__)
    parser.add_argument("rows", nargs="+", type=Path, metavar="ROW", help="recipe file, or folder of recipe files")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs, the table and the plot")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds, one run each (default: 1 2 3)")
    parser.add_argument("--base", type=Path, help="recipe that the rows inherit from, instead of the one they name")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every run")
    parser.add_argument("--extension", type=Path, action="append", default=[], help="as in `fairseq2 recipe train`")
    args = parser.parse_args(words)
    command = runner.format_command("ablate", words)

    try:
        rows = find_rows(args.rows, args.base)

        return runner.run_all(
            rows,
            args.seeds,
            args.output,
            lambda: report(rows, args.output, command),
            config=args.config,
            extensions=args.extension,
            shares_runs=True,
        )
    except RecipeError as ex:
        parser.error(str(ex))


def find_rows(paths: Sequence[Path], base: Path | None = None) -> list[Row]:
    """The rows at the given files and in the given folders, in order.

    :raises RecipeError: there are none at a path, or two have one name.
    """
    rows: list[Row] = []
    for path in paths:
        found = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not found or not all(file.is_file() for file in found):
            raise RecipeError(f"{path} is neither a recipe file nor a folder of recipe files.")
        rows += [Row(file, base=base) for file in found]
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"two rows are called `{name}`, which names their output; rename one of the files.")

    return rows


def report(rows: Sequence[Row], output: Path, command: str) -> str:
    """Write ``table.md``, ``table.json`` and, where matplotlib is installed, ``plot.png``.

    :returns: the table.
    """
    table = format_table(rows)
    runner.write_tables(output, command, table, [describe(row) for row in rows])
    if find_spec("matplotlib") is None:
        print("There is no plot, because matplotlib is not installed: pip install matplotlib.", file=sys.stderr)
    else:
        from tools.experiments.plots import draw_table

        draw_table(output / "table.json")

    return table


def format_table(rows: Sequence[Row]) -> str:
    """Mean ± standard deviation over seeds, in percent; one part for each group."""
    probes = list_probes(rows)
    header = ["", *(name_probe(probe) for probe in probes), "seconds", "seeds"]
    lines = [format_row(header), "|---|" + "---:|" * (len(header) - 1)]
    for group, members in group_rows(rows).items():
        lines.append(f"| **{group}** |" + " |" * (len(header) - 1))
        for row in members:
            seconds = f"{mean(row.seconds.values()):.0f}" if row.seconds else "n/a"
            seeds = f"{len(row.accuracies)}" + (f" ({len(row.failures)} failed)" if row.failures else "")
            cells = [format_accuracy(*row.summarize(probe)) for probe in probes]
            lines.append(format_row([row.title, *cells, seconds, seeds]))

    return "\n".join(lines)


def list_probes(rows: Sequence[Row]) -> list[str]:
    """The probes of all runs, in the order in which they appear; of several layers the best alone."""
    return overall_metrics(probe for row in rows for accuracies in row.accuracies.values() for probe in accuracies)


def name_probe(metric: str) -> str:
    """``probe_knn`` -> ``knn``."""
    return metric.removeprefix("probe_")


def group_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)

    return groups


def format_accuracy(average: float, deviation: float) -> str:
    if math.isnan(average):
        return "n/a"

    return f"{100 * average:.1f}" if math.isnan(deviation) else f"{100 * average:.1f} ± {100 * deviation:.1f}"


def describe(row: Row) -> dict[str, Any]:
    """A row of ``table.json``."""
    summaries = {probe: row.summarize(probe) for probe in list_probes([row])}

    return {
        "group": row.group,
        "name": row.name,
        "title": row.title,
        "modality": row.modality,
        "mean": {probe: average for probe, (average, _) in summaries.items()},
        "std": {probe: None if math.isnan(deviation) else deviation for probe, (_, deviation) in summaries.items()},
        "accuracies": row.accuracies,
        "seconds": row.seconds,
        "failures": row.failures,
    }


if __name__ == "__main__":
    sys.exit(main())
