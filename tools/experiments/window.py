"""Pre-train within a few minutes of a GPU; probes and fine-tuning follow without one. See recipes/study/README.md#on-a-gpu.

    python -m tools.experiments.window carry images .window                                # a share of the data, to take along
    python -m tools.experiments.window train images out/window --data .window --minutes 6  # on the device
    python -m tools.experiments.window unpack out/window                                   # where the archives were brought

`train` times an update of each method, divides what is left of the minutes among all runs, and leaves of each run its metrics
and its encoder in half precision, in archives of at most 15 MiB: hosts that are lent return few and small files. It prints the
command of the study that goes on from there. Without a GPU it trains on the CPU.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final

from ruamel.yaml import YAML

from d2v_plugin.weights.directory import write_directory
from d2v_plugin.weights.export import export_encoder
from tools.experiments import runner, study
from tools.experiments.study import ENCODER, ROOT, Outcome, Part, Plan

STUDY: Final = ROOT / "recipes" / "study" / "gpu.yaml"
NEEDED: Final = {"config.yaml", "summary.json", "timing.json"}
ARCHIVE_SIZE: Final = 15 << 20

RUNS: Final = "runs"
"""The folder of the runs: deeper than lent hosts return files from, so nothing is returned twice."""

SPLITS: Final = ("train", "probe", "valid")


def main(words: Sequence[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    carry_parser = commands.add_parser("carry", help="copy a share of the data")
    carry_parser.add_argument("part", choices=("images", "text"))
    carry_parser.add_argument("folder", type=Path)
    carry_parser.add_argument("--megabytes", type=float, default=15.0, help="of samples to train on (default: 15)")
    train_parser = commands.add_parser("train", help="pre-train by every method")
    train_parser.add_argument("part", choices=("images", "text"))
    train_parser.add_argument("output", type=Path)
    train_parser.add_argument("--data", type=Path, help="what `carry` wrote, instead of all")
    train_parser.add_argument("--minutes", type=float, default=6.0, help="for everything (default: 6)")
    train_parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="settings for every run")
    unpack_parser = commands.add_parser("unpack", help="unpack the archives of `train`")
    unpack_parser.add_argument("output", type=Path)
    args = parser.parse_args(words)

    if args.command == "unpack":
        unpack(args.output)
        return 0
    part = read_part(args.part)
    if args.command == "carry":
        carry(part, args.folder, round(args.megabytes * 1e6))
        return 0
    data = [] if args.data is None else [f"dataset.config_overrides.path={args.data.resolve()}"]
    seconds = train(part, args.output, 60 * args.minutes, (*data, *args.config))
    words = ["--output", f"{args.output / RUNS}", "--only", part.name, "--seconds", f"{seconds:.1f}"]
    print(shlex.join(["python", "-m", "tools.experiments.study", f"{STUDY.relative_to(ROOT)}", *words]))

    return 0


def read_part(name: str) -> Part:
    content = YAML(typ="safe", pure=True).load(STUDY)

    return next(part for part in study.read_parts(content["parts"], STUDY.parent) if part.name == name)


def carry(part: Part, folder: Path, size: int) -> None:
    """Copy the first so many bytes of training samples, and all that is probed."""
    recipe = runner.merge_recipe(part.methods[0].recipe)
    source = Path(recipe["dataset"]["config_overrides"]["path"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    for split in SPLITS:
        root, *lines = (source / f"{split}.tsv").read_text().splitlines()
        with (folder / f"{split}.bin").open("wb") as samples:
            rows = list(_copy_rows(source / root, lines, samples, size if split == "train" else None))
        (folder / f"{split}.tsv").write_text("\n".join([".", *rows]) + "\n")
    for path in (*source.glob("*.model"), *source.glob("vocabulary.json")):
        shutil.copy(path, folder)
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 2**20:.1f} MiB")


def _copy_rows(root: Path, lines: Sequence[str], samples: BinaryIO, limit: int | None) -> Iterator[str]:
    """The lines of a manifest whose samples lie in one file, until that is full."""
    name = Path(samples.name).name
    for line in lines:
        if line.startswith("#"):
            yield line
            continue
        if limit is not None and samples.tell() >= limit:
            return
        place, *columns = line.split("\t")
        if ":" in place:
            archive, offset, size = place.rsplit(":", 2)
            yield "\t".join([f"{name}:{samples.tell()}:{size}", *columns])
            with (root / archive).open("rb") as file:
                file.seek(int(offset))
                samples.write(file.read(int(size)))
        else:
            # A shard of tokens, and their number.
            content = (root / place).read_bytes()
            width = len(content) // int(columns[0])
            kept = content if limit is None else content[: limit // width * width]
            samples.write(kept)
            yield f"{name}\t{len(kept) // width}"


def train(part: Part, output: Path, seconds: float, config: Sequence[str]) -> float:
    """Pre-train by every method with every seed, all of them as long as fits.

    :param seconds: for everything.
    :returns: the seconds of each run's updates.
    """
    deadline = time.monotonic() + seconds
    plan = Plan(output / RUNS, tuning_seed=0, jobs=1, fine_tune=False, config=config)
    timed, starts = {}, []
    for method in part.methods:
        begin = time.monotonic()
        timed[method] = study.time_update(method, plan)
        starts.append(time.monotonic() - begin - study.TIMED_UPDATES * timed[method])
    runs = [(seed, method) for seed in part.seeds for method in part.methods]
    left = deadline - time.monotonic() - len(runs) * max(starts)
    each = round(max(left / sum(method.times for _, method in runs), 0.0), 1)
    print(f"{max(starts):.0f} s to start, {each:.1f} s of updates for each of {len(runs)} runs", flush=True)
    part = replace(part, seconds=each)
    for seed, method in runs:
        if time.monotonic() + max(starts) > deadline:
            print(f"No time left for {method.name}, seed {seed}.")
            continue
        outcome = Outcome(method.name, timed[method], 0.0)
        shrink(study.pretrain(part, method, outcome, method.grid[0], seed, plan))
    pack(output)

    return each


def shrink(run: Path) -> None:
    """Keep of a run its metrics and its encoder, in half precision."""
    if (run / ENCODER).exists():
        return
    content = export_encoder(run)
    content.student = {key: tensor.half() for key, tensor in content.student.items()}
    write_directory(run / ENCODER, content)
    shutil.rmtree(run / "checkpoints")


def pack(output: Path) -> None:
    """Put what :func:`study` needs of all runs into archives of a limited size each."""
    files = [path for path in sorted((output / RUNS).rglob("*")) if path.is_file() and _is_needed(path)]
    groups: list[list[Path]] = [[]]
    filled = 0
    for path in files:
        if filled + path.stat().st_size > ARCHIVE_SIZE and groups[-1]:
            groups.append([])
            filled = 0
        groups[-1].append(path)
        filled += path.stat().st_size
    for number, group in enumerate(groups):
        archive = output / f"window_{number}.tar"
        with tarfile.open(archive, "w") as file:
            for path in group:
                file.add(path, path.relative_to(output))
        print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


def _is_needed(path: Path) -> bool:
    return path.parent.name == ENCODER or path.suffix == ".jsonl" or path.name in NEEDED


def unpack(output: Path) -> None:
    """Put the runs where :func:`train` had them."""
    for archive in sorted(output.glob("window_*.tar")):
        with tarfile.open(archive) as file:
            file.extractall(output, filter="data")


if __name__ == "__main__":
    sys.exit(main())
