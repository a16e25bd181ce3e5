"""The runner of all experiments: trains recipes in processes of their own, skips what is done, and writes tables.

A run lies in a folder of its own. Repeating a command skips the runs that are finished and continues those that are not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import fairseq2.recipe  # noqa: F401  # before fairseq2's other modules, which need it
import torch
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.config import StandardConfigMerger
from ruamel.yaml import YAML

from d2v_plugin.verbs.inheritance import read_chain


@dataclass(eq=False)
class Entry:
    """A place in a table: a recipe, perhaps with settings of its own, that is trained once per seed."""

    path: Path
    setting: tuple[str, ...] = ()
    """``key=value`` of each setting."""

    failures: dict[int, str] = field(default_factory=dict, kw_only=True)
    """Seed -> the last line of what the run said."""

    @property
    def name(self) -> str:
        """Names the entry in messages; with ``/`` for ``, `` the folder of its runs."""
        raise NotImplementedError

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe with what it inherits."""
        return merge_recipe(self.path)

    def prepare(self, folder: Path) -> Path:
        """The recipe file for a run in a folder."""
        return self.path

    def take(self, seed: int, folder: Path) -> None:
        """Note what a finished run reached."""
        raise NotImplementedError


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the description as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def format_command(tool: str, words: Sequence[str] | None) -> str:
    """The command line that is being run, to be noted beside its results."""
    return shlex.join(["python", "-m", f"tools.experiments.{tool}", *(sys.argv[1:] if words is None else words)])


def merge_recipe(path: Path, *more: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with what it inherits, and with more changes on top.

    :raises RecipeError: it or a base of it cannot be read.
    """
    root, heirs = read_chain(path)
    recipe: dict[str, Any] = YAML(typ="safe", pure=True).load(root)
    for changes in (*heirs, *more):
        recipe = StandardConfigMerger().merge(recipe, changes)  # type: ignore[assignment]

    return recipe


def run_all(
    entries: Sequence[Entry],
    seeds: Sequence[int],
    output: Path,
    report: Callable[[], str],
    *,
    config: Sequence[str] = (),
    extensions: Sequence[Path] = (),
    shares_runs: bool = False,
) -> int:
    """Train every entry with every seed; the first table is complete after one seed.

    :param report: writes all tables, after each run; returns the one to print.
    :param config: overrides for every run.
    :param shares_runs: entries that come to the same recipe and settings are trained once.
    :returns: the exit status, 1 if a run failed.
    :raises RecipeError: a folder holds a run with other settings, or a recipe cannot be read.
    """
    table = ""
    folders: dict[str, Path] = {}
    for seed in seeds:
        for entry in entries:
            settings = {"recipe": entry.recipe, "config": [*entry.setting, *config]}
            folder = output / entry.name.replace(", ", "/") / f"seed_{seed}"
            if shares_runs:
                folder = folders.setdefault(json.dumps([seed, settings], sort_keys=True), folder)
            note_settings(folder, settings)
            words = [f"common.seed={seed}", *entry.setting, *config]
            title = f"{entry.name}, seed {seed}"
            failure = train(entry.prepare(folder), folder, words, title=title, extensions=extensions)
            if failure is None:
                entry.take(seed, folder)
            else:
                entry.failures[seed] = failure
            table = report()
    print(table)
    for entry in entries:
        for seed, failure in entry.failures.items():
            print(f"{entry.name}, seed {seed} failed: {failure}", file=sys.stderr)

    return 1 if any(entry.failures for entry in entries) else 0


def note_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note what tells a run from another one with the same name and seed.

    :raises RecipeError: the folder holds a run with other settings.
    """
    noted = folder / "settings.json"
    if noted.is_file() and json.loads(noted.read_text()) != settings:
        raise RecipeError(f"{folder} holds a run with other settings; delete it, or choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(settings, indent=2) + "\n")


def train(recipe: Path, folder: Path, config: Sequence[str], *, title: str, extensions: Sequence[Path] = ()) -> str | None:
    """Train a recipe, unless that is done.

    :param title: is printed with what begins.
    :returns: what went wrong in one line, or None.
    """
    if (folder / "summary.json").is_file():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{title} …", flush=True)
    words = ["recipe", "train", "--no-rich", "--config-file", str(recipe), str(folder)]
    for extension in extensions:
        words += ["--extension", str(extension)]

    return run_command([*words, "--config", *config], folder / "log.txt")


def run_command(words: Sequence[str], log_path: Path) -> str | None:
    """Run ``fairseq2 WORDS`` in a process of its own.

    :returns: what went wrong in one line, or None.
    """
    with log_path.open("a", encoding="utf-8") as log:
        status = subprocess.run([sys.executable, "-m", "d2v_plugin", *words], stdout=log, stderr=log, check=False).returncode
    if status == 0:
        return None
    lines = log_path.read_text(encoding="utf-8").splitlines()

    return lines[-1] if lines else f"exit status {status}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The metrics that a run published, in their order."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_seconds(folder: Path) -> float:
    """The time that a run took to train, starting up aside."""
    return float(read_lines(folder / "metrics" / "train.jsonl")[-1]["Wall Time"])


def write_tables(output: Path, command: str, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``table.md`` and ``table.json``."""
    output.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    lines = [f"Command: `{command}`", "", f"Machine: {machine}", "", table]
    output.joinpath("table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"command": command, "machine": machine, "rows": rows}
    output.joinpath("table.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_machine() -> str:
    """Processor, cores and PyTorch in a few words."""
    processor, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    elif info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor

    return f"{processor}, {os.cpu_count()} cores, PyTorch {torch.__version__}"


def format_row(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"
