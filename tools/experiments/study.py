"""Pre-train by several objectives for the same time, and compare what the features are worth as time and FLOPs pass.

    python -m tools.experiments.study recipes/study/study.yaml --output out/study

The file names, for each part (images, speech, text), the recipes of the methods, a small grid of settings that each method is
tuned on, and a recipe for fine-tuning. For each method the command

1. times an update while nothing else of the study runs, and counts its FLOPs;
2. runs every setting of the grid with a seed that is not reported, and keeps the one with the best linear probe at the end;
3. runs that setting with the seeds that are, and fine-tunes what came out; `{like: METHOD, times: 2}` is that method at its
   setting, for twice as long;
4. writes OUTPUT/report.md, report.json and a plot for each part.

Repeating a command skips what is finished. `--seconds 5 --seeds 1 2` is a reduced form that ends in minutes.
"""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from d2v_plugin.cli.main import main as run_here
from tools.experiments import runner
from tools.experiments.report import write_report
from tools.experiments.runner import read_lines
from tools.flops import count_flops

ROOT = Path(__file__).parents[2]
TIMED_UPDATES = 40
STEP_MULTIPLE = 20  # probes and checkpoints come at multiples of the steps at which metrics are published
NUM_PROBES = 8
ENCODER = "encoder"  # what a run on another host has left to fine-tune, see tools/experiments/window.py


@dataclass(frozen=True)
class Plan:
    """The command line and the file together."""

    output: Path
    tuning_seed: int
    jobs: int
    fine_tune: bool
    config: Sequence[str] = ()
    """Settings for every pre-training run."""


@dataclass
class Outcome:
    """The numbers of one method; seconds are those of a machine that does nothing else."""

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
    """Trains the first seed anew."""


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

    like: str | None = None
    """The method whose setting it takes instead of a grid of its own."""

    times: float = 1.0
    """Its training time, in that of the study."""

    def folder(self, plan: Plan) -> Path:
        """The place of its runs."""
        return plan.output / self.part / slug(self.name)


@dataclass(frozen=True)
class Part:
    """A modality: methods that are compared on the same data with the same encoder."""

    name: str
    methods: Sequence[Method]
    fine_tuning: Path
    seconds: float
    """Training time of each run on an idle core."""

    seeds: Sequence[int]
    content: Mapping[str, Any]
    """The part as it stands in the file: title, what is published, and the score of fine-tuning."""


def main(words: Sequence[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    parser.add_argument("study", type=Path, help="recipes/study/study.yaml, or one of your own")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and the report")
    parser.add_argument("--only", nargs="+", metavar="PART", help="leave the other parts out")
    parser.add_argument("--seconds", type=float, help="training time of each run on an idle core, instead of the file's")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the file's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1); timing always runs alone")
    parser.add_argument("--no-fine-tuning", action="store_true", help="probes only")
    args = parser.parse_args(words)
    command = runner.format_command("study", words)

    content = YAML(typ="safe", pure=True).load(args.study)
    plan = Plan(args.output, content["tuning_seed"], args.jobs, fine_tune=not args.no_fine_tuning)
    parts = [part for part in read_parts(content["parts"], args.study.parent) if not args.only or part.name in args.only]
    parts = [replace(part, seconds=args.seconds or part.seconds, seeds=args.seeds or part.seeds) for part in parts]
    if not parts:
        parser.error(f"--only: the parts of {args.study} are {', '.join(content['parts'])}.")

    # All timing first, before anything else keeps the machine busy.
    timings = {method: time_updates(method, plan) for part in parts for method in part.methods}
    for part in parts:
        outcomes = [Outcome(method.name, *timings[method]) for method in part.methods]
        compare(part, outcomes, plan)
        write_part(part, outcomes, plan)
    write_report(plan.output, command=command, machine=runner.describe_machine())
    print(f"Read {plan.output / 'report.md'}.")

    return 0


def read_parts(content: Mapping[str, Any], folder: Path) -> Iterator[Part]:
    """The parts of a study; recipes are named relative to its file."""
    for name, part in content.items():
        fine_tuning = part["fine_tuning"]
        methods: dict[str, Method] = {}
        for title, method in part["methods"].items():
            if "like" in method:
                methods[title] = replace(methods[method["like"]], name=title, grid=(), **method)
            else:
                methods[title] = Method(
                    name,
                    title,
                    folder / method["recipe"],
                    tuple(tuple(shlex.split(setting)) for setting in method["grid"]),
                    folder / method.get("fine_tuning", fine_tuning["recipe"]),
                )
        yield Part(name, list(methods.values()), folder / fine_tuning["recipe"], part["seconds"], part["seeds"], part)


def time_updates(method: Method, plan: Plan) -> tuple[float, float]:
    """Seconds and GFLOPs of one update."""
    seconds = time_update(method, plan)
    noted = _timing_folder(method, plan) / "timing.json"
    content = json.loads(noted.read_text())
    if "gflops" not in content:
        content["gflops"] = count_update_gflops(method.recipe)
        noted.write_text(json.dumps(content) + "\n")
    print(f"{method.part}, {method.name}: {seconds:.3f} s and {content['gflops']:.2f} GFLOP per update", flush=True)

    return seconds, content["gflops"]


def time_update(method: Method, plan: Plan) -> float:
    """Seconds of one update: the fastest of a short run's second half, as all else on a machine only adds."""
    folder = _timing_folder(method, plan)
    noted = folder / "timing.json"
    if not noted.is_file():
        every = TIMED_UPDATES // 8
        config = [*plan.config, *run_for(TIMED_UPDATES, every), "probing.probes=[]", "pictures.enabled=false"]
        train(method.recipe, folder, config)
        walls = [line["Wall Time"] for line in read_lines(folder / "metrics" / "train.jsonl")]
        noted.write_text(json.dumps({"seconds": min((late - early) / every for early, late in pairwise(walls[3:]))}) + "\n")
    seconds: float = json.loads(noted.read_text())["seconds"]

    return seconds


def _timing_folder(method: Method, plan: Plan) -> Path:
    return replace(method, name=method.like or method.name).folder(plan) / "timing"


def count_update_gflops(recipe: Path) -> float:
    """GFLOPs of one update of a recipe, which is run for it: forward and backward pass of student and teacher."""
    config = [
        *run_for(1, 1),
        "regime.validate_every_n_steps=null",
        "lr_scheduler.config.num_warmup_steps=0",
        "probing.probes=[]",
        "pictures.enabled=false",
        "guard.collapse_every_n_steps=null",
    ]
    with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        words = ["recipe", "train", "--no-rich", "--config-file", str(recipe), folder, "--config", *config]

        return count_flops(lambda: run_here(words)) / 1e9


def compare(part: Part, outcomes: Sequence[Outcome], plan: Plan) -> None:
    """Tune every method on its grid, then run it with every seed."""
    pairs = list(zip(part.methods, outcomes, strict=True))
    with ThreadPoolExecutor(plan.jobs) as pool:
        searches = [
            (outcome, setting, pool.submit(pretrain, part, method, outcome, setting, plan.tuning_seed, plan))
            for method, outcome in pairs
            for setting in method.grid
            if len(method.grid) > 1
        ]
        for outcome, setting, search in searches:
            outcome.search[shlex.join(setting)] = final(read_curve(search.result()))
        finals = []
        chosen = {method.name: choose(method, outcome.search) for method, outcome in pairs if not method.like}
        for method, outcome in pairs:
            outcome.setting = chosen[method.like or method.name]
            for seed in part.seeds:
                finals.append((method, outcome, seed, pool.submit(pretrain, part, method, outcome, outcome.setting, seed, plan)))
        tuned = []
        for method, outcome, seed, done in finals:
            folder = done.result()
            outcome.curves[seed] = read_curve(folder)
            if plan.fine_tune:
                score = pool.submit(fine_tune, part, method.fine_tuning, folder, folder / "fine_tuned", seed)
                tuned.append((outcome, seed, score))
        for outcome, seed, score in tuned:
            outcome.fine_tuned[seed] = score.result()
    for method, outcome in pairs:
        outcome.command = format_command(method, outcome)


def choose(method: Method, found: Mapping[str, float]) -> Sequence[str]:
    """The best of the settings of a method; a single one needs no search."""
    return shlex.split(max(found, key=lambda setting: (found[setting], setting))) if found else method.grid[0]


def pretrain(part: Part, method: Method, outcome: Outcome, setting: Sequence[str], seed: int, plan: Plan) -> Path:
    """Pre-train for the time of the part, or as many times as long as the method says.

    :returns: the folder of the run.
    """
    num_steps = max(1, round(method.times * part.seconds / outcome.seconds_per_update / STEP_MULTIPLE)) * STEP_MULTIPLE
    folder = method.folder(plan) / f"{slug('_'.join(setting)) or 'default'}_{num_steps}_seed_{seed}"
    train(method.recipe, folder, [*plan.config, *configure(setting, seed, num_steps)])

    return folder


def configure(setting: Sequence[str], seed: int, num_steps: int) -> list[str]:
    """The settings in which a run differs from its recipe: its own, its length, and how often it is probed."""
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


def run_for(num_steps: int, publish_every: int) -> list[str]:
    """The settings of a run that is only measured."""
    return [
        f"regime.num_steps={num_steps}",
        f"regime.publish_metrics_every_n_steps={publish_every}",
        f"regime.checkpoint_every_n_steps={num_steps}",
    ]


def format_command(method: Method, outcome: Outcome) -> str:
    """The line that trains a method's first seed anew, from the folder of this repository."""
    seed = min(outcome.curves)
    num_steps = outcome.curves[seed]["linear"][-1][0]
    recipe = os.path.relpath(method.recipe, ROOT)
    words = ["fairseq2", "recipe", "train", "--config-file", recipe, f"out/{slug(method.name)}"]

    return shlex.join([*words, "--config", *configure(outcome.setting, seed, num_steps)])


def fine_tune(part: Part, recipe: Path, checkpoint: Path | None, folder: Path, seed: int) -> float:
    """Fine-tune what a run left, or nothing at all.

    :returns: the score of the end.
    """
    if checkpoint is not None and (checkpoint / ENCODER).exists():
        checkpoint /= ENCODER
    train(recipe, folder, [f"common.seed={seed}", f"init.path={'null' if checkpoint is None else checkpoint}"])
    scores = json.loads((folder / "summary.json").read_text())["scores"]
    last: Mapping[str, float] = next(iter(scores.values()))

    return last[part.content["fine_tuning"]["score"]]


def train(recipe: Path, folder: Path, config: Sequence[str]) -> None:
    """Run a recipe, unless that is done.

    :raises SystemExit: it failed.
    """
    error = runner.train(recipe, folder, config, title=str(folder))
    if error is not None:
        raise SystemExit(f"{folder} failed: {error}\nThe log is {folder / 'log.txt'}.")


def read_curve(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Probe -> (updates, accuracy) in the order of the run; of several layers the best one at its end."""
    lines = read_lines(folder / "metrics" / "valid" / "probe.jsonl")
    curves: dict[str, list[tuple[int, float]]] = {}
    for probe, mark in (("linear", "Linear"), ("knn", "k-NN")):
        layers = [name for name in lines[-1] if name.startswith("Probe ") and mark in name]
        best = max(layers, key=lambda name: lines[-1][name])
        curves[probe] = [(line["Step"], line[best]) for line in lines]

    return curves


def final(curve: Mapping[str, Sequence[tuple[int, float]]]) -> float:
    """The last linear probe; a run that went wrong counts as nothing."""
    score = curve["linear"][-1][1]

    return 0.0 if math.isnan(score) else score


def write_part(part: Part, outcomes: Sequence[Outcome], plan: Plan) -> None:
    """Fine-tune from scratch and note the numbers of a part; the report is made of all parts that are there."""
    folder = plan.output / part.name
    seeds = part.seeds if plan.fine_tune else []
    floor = {seed: fine_tune(part, part.fine_tuning, None, folder / "scratch" / f"seed_{seed}", seed) for seed in seeds}
    seconds = sum(runner.read_seconds(path.parent.parent) for path in folder.rglob("metrics/train.jsonl"))
    content = {
        "title": part.content["title"],
        "published": part.content["published"],
        "seconds": part.seconds,
        "hours": seconds / 3600,
        "fine_tuned_title": part.content["fine_tuning"]["title"],
        "from_scratch": floor,
        "methods": [vars(outcome) for outcome in outcomes],
    }
    folder.joinpath("numbers.json").write_text(json.dumps(content, indent=2) + "\n")


def slug(name: str) -> str:
    """A name as part of a path."""
    return "".join(letter if letter.isalnum() or letter in ".=-" else "_" for letter in name).strip("_").lower()


if __name__ == "__main__":
    sys.exit(main())
