"""Pre-train by several objectives for the same time, and compare what the features are worth as time and FLOPs pass.

    python tools/study.py recipes/study/study.yaml --output out/study

The file names, for each part (images, speech, text), the recipes of the methods, a small grid of settings that each method is
tuned on, and a recipe for fine-tuning. For each method the command

1. times an update while nothing else of the study runs, and counts its FLOPs;
2. runs every setting of the grid with the first seed, and keeps the one with the best linear probe at the end;
3. runs that setting with the other seeds, and fine-tunes what came out;
4. writes OUTPUT/report.md, report.json and a plot for each part.

Repeating a command skips what is finished. `--seconds 5 --seeds 1 2` is a reduced form that ends in minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the tools beside this one
sys.path.insert(0, str(Path(__file__).parent.parent))  # also in a mere checkout

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import fairseq2.recipe  # noqa: F401  # before fairseq2's other modules, which need it
from ablate import describe_machine, run_command
from ruamel.yaml import YAML
from study_flops import count_update_gflops
from study_report import write_report

TIMED_UPDATES = 40
STEP_MULTIPLE = 20  # probes and checkpoints come at multiples of the steps at which metrics are published
NUM_PROBES = 8


@dataclass(frozen=True)
class Method:
    """An objective of a part of the study."""

    part: str
    name: str
    recipe: Path
    grid: Sequence[Sequence[str]]
    """Settings to try, each a list of ``key=value``."""

    fine_tuning: Path
    """The recipe for what it pre-trained: the part's, unless the method has a model of its own."""


@dataclass(frozen=True)
class Part:
    """A modality: methods that are compared on the same data with the same encoder."""

    name: str
    title: str
    methods: Sequence[Method]
    fine_tuning: Path
    fine_tuned_score: str
    fine_tuned_title: str
    published: Mapping[str, float]
    """How many times faster data2vec 2.0 reaches the quality of a method, as published."""


@dataclass
class Outcome:
    """What one method reached; numbers of seconds are those of a machine that does nothing else."""

    method: str
    seconds_per_update: float
    gflops_per_update: float
    setting: Sequence[str] = ()
    search: dict[str, float] = field(default_factory=dict)
    """Setting -> linear probe."""

    curves: dict[int, dict[str, list[tuple[int, float]]]] = field(default_factory=dict)
    """Seed -> probe -> (updates, accuracy)."""

    fine_tuned: dict[int, float] = field(default_factory=dict)
    """Seed -> score."""

    command: str = ""
    """What trains the first seed anew."""


@dataclass(frozen=True)
class Plan:
    """The command line and the file together."""

    output: Path
    seconds: float
    seeds: Sequence[int]
    jobs: int
    fine_tune: bool


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="recipes/study/study.yaml, or one of your own")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and the report")
    parser.add_argument("--only", nargs="+", metavar="PART", help="leave the other parts out")
    parser.add_argument("--seconds", type=float, help="training time of each run on an idle core, instead of the file's")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the file's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1); timing always runs alone")
    parser.add_argument("--no-fine-tuning", action="store_true", help="probes only")
    args = parser.parse_args(words)

    content = YAML(typ="safe", pure=True).load(args.study)
    parts = [part for part in read_parts(content["parts"], args.study.parent) if not args.only or part.name in args.only]
    if not parts:
        parser.error(f"--only: the parts of {args.study} are {', '.join(content['parts'])}.")
    plan = Plan(
        output=args.output,
        seconds=args.seconds or content["seconds"],
        seeds=args.seeds or content["seeds"],
        jobs=args.jobs,
        fine_tune=not args.no_fine_tuning,
    )
    command = shlex.join(["python", "tools/study.py", *(sys.argv[1:] if words is None else words)])

    # All timing first, before anything else keeps the machine busy.
    timings = {method: time_updates(method, plan) for part in parts for method in part.methods}
    for part in parts:
        outcomes = [Outcome(method.name, *timings[method]) for method in part.methods]
        compare(part, outcomes, plan)
        scratch = plan.output / part.name / "scratch"
        seeds = plan.seeds if plan.fine_tune else []
        floor = {seed: fine_tune(part, part.fine_tuning, None, scratch / f"seed_{seed}", seed) for seed in seeds}
        write_part(part, outcomes, floor, plan)
    write_report(plan.output, command=command, machine=describe_machine(), seconds=plan.seconds)
    print(f"Read {plan.output / 'report.md'}.")

    return 0


def read_parts(content: Mapping[str, Any], folder: Path) -> Iterator[Part]:
    """The parts of a study; recipes are named relative to its file."""
    for name, part in content.items():
        fine_tuning = part["fine_tuning"]
        methods = [
            Method(
                name,
                title,
                folder / method["recipe"],
                tuple(tuple(shlex.split(setting)) for setting in method["grid"]),
                folder / method.get("fine_tuning", fine_tuning["recipe"]),
            )
            for title, method in part["methods"].items()
        ]
        yield Part(
            name,
            part["title"],
            methods,
            folder / fine_tuning["recipe"],
            fine_tuning["score"],
            fine_tuning["title"],
            part["published"],
        )


def time_updates(method: Method, plan: Plan) -> tuple[float, float]:
    """Seconds and GFLOPs of one update; the median over the second half of a short run, so that warming up does not count."""
    folder = plan.output / method.part / slug(method.name) / "timing"
    noted = folder / "timing.json"
    if not noted.is_file():
        every = TIMED_UPDATES // 8
        regime = [f"regime.num_steps={TIMED_UPDATES}", f"regime.publish_metrics_every_n_steps={every}", "probing.probes=[]"]
        train(method.recipe, folder, [*regime, f"regime.checkpoint_every_n_steps={TIMED_UPDATES}", "pictures.enabled=false"])
        lines = read_lines(folder / "metrics" / "train.jsonl")
        walls = [line["Wall Time"] for line in lines]
        laps = sorted((late - early) / every for early, late in pairwise(walls[3:]))
        content = {"seconds": laps[len(laps) // 2], "gflops": count_update_gflops(method.recipe)}
        noted.write_text(json.dumps(content) + "\n")
    content = json.loads(noted.read_text())
    print(f"{method.part}, {method.name}: {content['seconds']:.3f} s and {content['gflops']:.2f} GFLOP per update", flush=True)

    return content["seconds"], content["gflops"]


def compare(part: Part, outcomes: Sequence[Outcome], plan: Plan) -> None:
    """Tune every method on its grid, then run it with every seed."""
    with ThreadPoolExecutor(plan.jobs) as pool:
        searches = [
            (outcome, setting, pool.submit(run, method, outcome, setting, plan.seeds[0], plan))
            for method, outcome in zip(part.methods, outcomes, strict=True)
            for setting in method.grid
        ]
        for outcome, setting, search in searches:
            outcome.search[shlex.join(setting)] = final(read_curve(search.result()))
        finals = []
        for method, outcome in zip(part.methods, outcomes, strict=True):
            best = max(outcome.search, key=lambda setting: (outcome.search[setting], setting))
            outcome.setting = shlex.split(best)
            for seed in plan.seeds:
                finals.append((method, outcome, seed, pool.submit(run, method, outcome, outcome.setting, seed, plan)))
        tuned = []
        for method, outcome, seed, done in finals:
            folder = done.result()
            outcome.curves[seed] = read_curve(folder)
            if plan.fine_tune:
                score = pool.submit(fine_tune, part, method.fine_tuning, folder, folder / "fine_tuned", seed)
                tuned.append((outcome, seed, score))
        for outcome, seed, score in tuned:
            outcome.fine_tuned[seed] = score.result()
    for method, outcome in zip(part.methods, outcomes, strict=True):
        outcome.command = format_command(method, outcome)


def run(method: Method, outcome: Outcome, setting: Sequence[str], seed: int, plan: Plan) -> Path:
    """Pre-train.

    :returns: the folder of the run.
    """
    num_steps = max(1, round(plan.seconds / outcome.seconds_per_update / STEP_MULTIPLE)) * STEP_MULTIPLE
    name = slug("_".join(setting)) or "default"
    folder = plan.output / method.part / slug(method.name) / f"{name}_{num_steps}_seed_{seed}"
    train(method.recipe, folder, configure(setting, seed, num_steps))

    return folder


def configure(setting: Sequence[str], seed: int, num_steps: int) -> list[str]:
    """What a run changes in its recipe: how long it is, and how often it is probed."""
    every = max(1, num_steps // STEP_MULTIPLE // NUM_PROBES) * STEP_MULTIPLE

    return [
        *setting,
        f"common.seed={seed}",
        f"regime.num_steps={num_steps}",
        f"lr_scheduler.config.num_warmup_steps={num_steps // 10}",
        f"regime.publish_metrics_every_n_steps={STEP_MULTIPLE}",
        "regime.validate_at_start=true",
        f"regime.validate_every_n_steps={every}",
        f"regime.checkpoint_every_n_steps={num_steps}",
    ]


def format_command(method: Method, outcome: Outcome) -> str:
    """What trains a method's first seed anew, from the folder of this repository."""
    seed = min(outcome.curves)
    num_steps = outcome.curves[seed]["linear"][-1][0]
    recipe = os.path.relpath(method.recipe, Path(__file__).parent.parent)
    words = ["fairseq2", "recipe", "train", "--config-file", recipe, f"out/{slug(method.name)}"]

    return shlex.join([*words, "--config", *configure(outcome.setting, seed, num_steps)])


def fine_tune(part: Part, recipe: Path, checkpoint: Path | None, folder: Path, seed: int) -> float:
    """Fine-tune what a run left, or nothing at all.

    :returns: the score of the end.
    """
    train(recipe, folder, [f"common.seed={seed}", f"init.path={'null' if checkpoint is None else checkpoint}"])
    scores = json.loads((folder / "summary.json").read_text())["scores"]
    last: Mapping[str, float] = next(iter(scores.values()))

    return last[part.fine_tuned_score]


def train(recipe: Path, folder: Path, config: Sequence[str]) -> None:
    """Run a recipe in a process of its own, unless that is done."""
    if (folder / "summary.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{folder} …", flush=True)
    words = ["recipe", "train", "--no-rich", "--config-file", str(recipe), str(folder), "--config", *config]
    error = run_command(words, folder / "log.txt")
    if error is not None:
        raise SystemExit(f"{folder} failed: {error}\nThe log is {folder / 'log.txt'}.")


def read_curve(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Probe -> (updates, accuracy) in the order of the run; of several layers the best one at its end."""
    lines = read_lines(folder / "metrics" / "valid" / "probe.jsonl")
    names = [name for name in lines[-1] if name.startswith("Probe ")]
    curves: dict[str, list[tuple[int, float]]] = {}
    for probe, mark in (("linear", "Linear"), ("knn", "k-NN")):
        layers = [name for name in names if mark in name]
        best = max(layers, key=lambda name: lines[-1][name])
        curves[probe] = [(line["Step"], line[best]) for line in lines]

    return curves


def final(curve: Mapping[str, Sequence[tuple[int, float]]]) -> float:
    """The last linear probe; a run that went wrong counts as nothing."""
    score = curve["linear"][-1][1]

    return 0.0 if math.isnan(score) else score


def write_part(part: Part, outcomes: Sequence[Outcome], floor: Mapping[int, float], plan: Plan) -> None:
    """Note the numbers of a part; the report is made of all parts that are there."""
    content = {
        "title": part.title,
        "published": dict(part.published),
        "hours": count_hours(plan.output / part.name),
        "fine_tuned_title": part.fine_tuned_title,
        "from_scratch": floor,
        "methods": [vars(outcome) for outcome in outcomes],
    }
    plan.output.joinpath(part.name, "numbers.json").write_text(json.dumps(content, indent=2) + "\n")


def count_hours(folder: Path) -> float:
    """The time that all runs below a folder took, starting up aside."""
    seconds = [read_lines(path)[-1]["Wall Time"] for path in folder.rglob("metrics/train.jsonl")]

    return float(sum(seconds)) / 3600


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def slug(name: str) -> str:
    """A name as part of a path."""
    return "".join(letter if letter.isalnum() or letter in ".=-" else "_" for letter in name).strip("_").lower()


if __name__ == "__main__":
    sys.exit(main())
