"""Run recipes over seeds and compare them: a table in Markdown and JSON, and a plot.

    python tools/ablate.py recipes/ablations/views recipes/ablations/cls_loss --seeds 1 2 3 --output out/ablations

Rows are recipe files, or folders of them. Every row is trained once per seed by `fairseq2 recipe train` in a process of its own,
in OUTPUT/<folder>/<row>/seed_<n>; rows that come to the same recipe share their runs. Repeating a command skips the runs that are
finished and continues those that are not; the table is written again after every run.

The rows of recipes/ablations inherit from a small base. On another one, `--base recipes/image/pretrain_base.yaml`, the same rows
are the ablations at full size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # also in a mere checkout

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import fairseq2.recipe  # noqa: F401  # before fairseq2's other modules, which need it
import torch
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.config import StandardConfigMerger
from ruamel.yaml import YAML

from d2v_plugin.probing.base import overall_metrics
from d2v_plugin.verbs.inheritance import BASE, read_chain


@dataclass(frozen=True)
class Row:
    """One recipe of the comparison."""

    path: Path

    @property
    def group(self) -> str:
        """The folder of the recipe: rows of a group share a part of the table and a panel of the plot."""
        return self.path.resolve().parent.name

    @property
    def name(self) -> str:
        return f"{self.group}/{self.path.stem}"

    @property
    def title(self) -> str:
        """The first line of the recipe if it is a comment, else its name."""
        line = self.path.read_text(encoding="utf-8").split("\n", 1)[0]

        return line.lstrip("# ") if line.startswith("#") else self.path.stem


@dataclass
class Result:
    """What the runs of a row reached."""

    row: Row

    accuracies: dict[int, dict[str, float]] = field(default_factory=dict)
    """Seed -> probe -> accuracy, from 0 to 1."""

    seconds: dict[int, float] = field(default_factory=dict)
    """Seed -> seconds of training."""

    failures: dict[int, str] = field(default_factory=dict)
    """Seed -> the last line of what the run said."""

    def summarise(self, probe: str) -> tuple[float, float]:
        """Mean and sample standard deviation of an accuracy over the seeds; NaN where there are too few."""
        values = [accuracies[probe] for accuracies in self.accuracies.values() if probe in accuracies]

        return mean(values) if values else math.nan, stdev(values) if len(values) > 1 else math.nan


def main(words: Sequence[str] | None = None) -> int:
    """:returns: 0, or 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=Path, metavar="ROW", help="recipe file, or folder of recipe files")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs, the table and the plot")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds, one run each (default: 1 2 3)")
    parser.add_argument("--base", type=Path, help="recipe that the rows inherit from, instead of the one they name")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every run")
    parser.add_argument("--extension", type=Path, action="append", default=[], help="as in `fairseq2 recipe train`")
    args = parser.parse_args(words)

    rows = find_rows(parser, args.rows)
    results = [Result(row) for row in rows]
    command = shlex.join(["python", "tools/ablate.py", *(sys.argv[1:] if words is None else words)])

    folders: dict[str, Path] = {}
    for seed in args.seeds:  # the first complete table after one seed
        for result in results:
            try:
                run(result, seed, args, folders)
            except RecipeError as ex:
                parser.error(str(ex))
            write_report(results, args.output, command)

    print(format_table(results))
    for result in results:
        for seed, failure in result.failures.items():
            print(f"{result.row.name}, seed {seed} failed: {failure}", file=sys.stderr)

    return 1 if any(result.failures for result in results) else 0


def find_rows(parser: argparse.ArgumentParser, paths: Sequence[Path]) -> list[Row]:
    """The rows at the given files and in the given folders, in order."""
    rows: list[Row] = []
    for path in paths:
        found = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not found or not all(file.is_file() for file in found):
            parser.error(f"{path} is neither a recipe file nor a folder of recipe files.")
        rows += [Row(file) for file in found]
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"two rows are called `{name}`, which names their output; rename one of the files.")

    return rows


def run(result: Result, seed: int, args: argparse.Namespace, folders: dict[str, Path]) -> None:
    """Train one row with one seed, unless that is done, and note what it reached.

    :param folders: where runs of this command are, by their settings and seeds.
    :raises RecipeError: its folder holds a run with other settings, or the recipe cannot be read.
    """
    row = result.row
    settings = describe_settings(row, args.base, args.config)
    folder = folders.setdefault(json.dumps([seed, settings], sort_keys=True), args.output / row.name / f"seed_{seed}")
    noted = folder / "settings.json"
    if noted.is_file() and json.loads(noted.read_text()) != settings:
        raise RecipeError(f"{folder} holds a run with other settings; delete it, or choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(settings, indent=2) + "\n")

    if not (folder / "summary.json").is_file():
        print(f"{row.name}, seed {seed} …", flush=True)
        error = train(row, seed, folder, args)
        if error is not None:
            result.failures[seed] = error
            return

    result.accuracies[seed] = json.loads((folder / "summary.json").read_text())["accuracies"].get("pre-trained", {})
    metrics = (folder / "metrics" / "train.jsonl").read_text().splitlines()
    result.seconds[seed] = json.loads(metrics[-1])["Wall Time"]


def describe_settings(row: Row, base: Path | None, config: Sequence[str]) -> dict[str, Any]:
    """Everything that tells a run from another with the same name and seed."""
    root, heirs = read_chain(row.path)
    if base is not None:
        root, heirs = read_chain(base)
        heirs = [*heirs, own_changes(row)]

    recipe = YAML(typ="safe", pure=True).load(root)
    for changes in heirs:
        recipe = StandardConfigMerger().merge(recipe, changes)

    return {"recipe": recipe, "config": list(config)}


def train(row: Row, seed: int, folder: Path, args: argparse.Namespace) -> str | None:
    """:returns: what went wrong in one line, or None."""
    recipe = row.path if args.base is None else write_heir(row, args.base, folder)
    words = ["recipe", "train", "--no-rich", "--config-file", str(recipe), str(folder)]
    for extension in args.extension:
        words += ["--extension", str(extension)]
    words += ["--config", f"common.seed={seed}", *args.config]

    return run_command(words, folder / "log.txt")


def run_command(words: Sequence[str], log_path: Path) -> str | None:
    """Run ``fairseq2 WORDS`` in a process of its own.

    :returns: what went wrong in one line, or None.
    """
    with log_path.open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "d2v_plugin", *words]
        status = subprocess.run(command, stdout=log, stderr=log, env=_environment(), check=False).returncode
    if status == 0:
        return None
    lines = log_path.read_text(encoding="utf-8").splitlines()

    return lines[-1] if lines else f"exit status {status}"


def write_heir(row: Row, base: Path, folder: Path) -> Path:
    """The row as a recipe that inherits from another base."""
    path = folder / "recipe.yaml"
    YAML(typ="safe", pure=True).dump({BASE: str(base.resolve()), **own_changes(row)}, path)

    return path


def own_changes(row: Row) -> Mapping[str, Any]:
    """What a row says itself.

    :raises RecipeError: it has no base that another could take the place of.
    """
    _, heirs = read_chain(row.path)
    if not heirs:
        raise RecipeError(f"{row.path} has no `{BASE}` that --base could take the place of.")

    return heirs[-1]


def _environment() -> dict[str, str]:
    checkout = str(Path(__file__).resolve().parent.parent)

    return {**os.environ, "PYTHONPATH": os.pathsep.join([checkout, *filter(None, [os.environ.get("PYTHONPATH")])])}


def write_report(results: Sequence[Result], output: Path, command: str) -> None:
    """Write ``table.md``, ``table.json`` and, where matplotlib is installed, ``plot.png``."""
    output.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    lines = [f"Command: `{command}`", "", f"Machine: {machine}", "", format_table(results)]
    output.joinpath("table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"command": command, "machine": machine, "rows": [_as_json(result) for result in results]}
    output.joinpath("table.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_plot(results, output / "plot.png")


def describe_machine() -> str:
    """Processor, cores and PyTorch in a few words."""
    processor, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    elif info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor

    return f"{processor}, {os.cpu_count()} cores, PyTorch {torch.__version__}"


def format_table(results: Sequence[Result]) -> str:
    """Mean ± standard deviation over seeds, in percent; one part for each group."""
    probes = list_probes(results)
    header = ["", *(name_probe(probe) for probe in probes), "seconds", "seeds"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" + "---:|" * (len(header) - 1)]
    for group, members in group_results(results).items():
        lines.append(f"| **{group}** |" + " |" * (len(header) - 1))
        for result in members:
            cells = [_format_accuracy(*result.summarise(probe)) for probe in probes]
            seconds = f"{mean(result.seconds.values()):.0f}" if result.seconds else "n/a"
            seeds = f"{len(result.accuracies)}" + (f" ({len(result.failures)} failed)" if result.failures else "")
            lines.append(f"| {result.row.title} | " + " | ".join([*cells, seconds, seeds]) + " |")

    return "\n".join(lines)


def list_probes(results: Sequence[Result]) -> list[str]:
    """The probes of all runs, in the order in which they appear; of several layers the best alone."""
    return overall_metrics(probe for result in results for accuracies in result.accuracies.values() for probe in accuracies)


def name_probe(metric: str) -> str:
    """``probe_knn`` -> ``knn``."""
    return metric.removeprefix("probe_")


def group_results(results: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.row.group, []).append(result)

    return groups


def _format_accuracy(average: float, deviation: float) -> str:
    if math.isnan(average):
        return "n/a"

    return f"{100 * average:.1f}" if math.isnan(deviation) else f"{100 * average:.1f} ± {100 * deviation:.1f}"


def _as_json(result: Result) -> dict[str, Any]:
    summaries = {probe: result.summarise(probe) for probe in list_probes([result])}

    return {
        "group": result.row.group,
        "name": result.row.name,
        "title": result.row.title,
        "mean": {probe: average for probe, (average, _) in summaries.items()},
        "std": {probe: None if math.isnan(deviation) else deviation for probe, (_, deviation) in summaries.items()},
        "accuracies": result.accuracies,
        "seconds": result.seconds,
        "failures": result.failures,
    }


def draw_plot(results: Sequence[Result], path: Path) -> None:
    """One panel for each group, one line for each row: mean and deviation of every probe, and the single runs."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("There is no plot, because matplotlib is not installed: pip install 'd2v-plugin[plots]'.", file=sys.stderr)
        return

    groups, probes = group_results(results), list_probes(results)
    sizes = [len(members) for members in groups.values()]
    figure = Figure(figsize=(8, 1.2 + 0.45 * sum(sizes) + 0.5 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=sizes)[:, 0]
    for panel, (group, members) in zip(panels, groups.items(), strict=True):
        for i, probe in enumerate(probes):
            offset = 0.3 * (i / max(1, len(probes) - 1) - 0.5)
            heights = [y + offset for y in range(len(members))]
            summaries = [result.summarise(probe) for result in members]
            averages = [100 * average for average, _ in summaries]
            deviations = [0.0 if math.isnan(deviation) else 100 * deviation for _, deviation in summaries]
            panel.errorbar(averages, heights, xerr=deviations, fmt="o", color=f"C{i}", capsize=3, label=name_probe(probe))
            for y, result in zip(heights, members, strict=True):
                single = [100 * accuracies[probe] for accuracies in result.accuracies.values() if probe in accuracies]
                panel.plot(single, [y] * len(single), ".", color=f"C{i}", alpha=0.4)
        panel.set_title(group.replace("_", " "), loc="left", fontsize="medium", fontweight="bold")
        panel.set_yticks(range(len(members)), [result.row.title for result in members])
        panel.set_ylim(len(members) - 0.5, -0.5)
        panel.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel("accuracy, % (mean ± deviation over seeds; dots: runs)")
    if probes:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(probes))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
