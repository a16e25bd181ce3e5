"""What whole runs of recipes cost on 1 to 64 GPUs: hours, communication, memory of a GPU, and how fast data must be read.

    python -m tools.benchmark cost
    python -m tools.benchmark cost --recipes recipes/image/pretrain_huge14.yaml --gpus 16 32 64 --card H100 --parallelism hsdp
    python -m tools.benchmark cost --measured rows.json   # utilisation as `step --device cuda --json rows.json` measured it

A model, not a measurement. FLOPs, parameters and kept activations are counted from the recipe's own model. Assumed are: the
share of the data sheet's rate (`--mfu`), the same for every batch; reductions and gatherings in fp32 that hide behind the
backward pass, two thirds of the time; links as fast as their data sheets; recordings of 15.6 s; activations in bf16, in
micro-batches as large as 85 % of the memory allows. Cores that read are those of recipes/speed (Zen 4).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch

from d2v_plugin.core.batch import Modality, as_grid
from d2v_plugin.tasks.audio_settings import AudioPretrainingConfig
from d2v_plugin.tasks.image import ImagePretrainingConfig
from d2v_plugin.tasks.text import TextPretrainingConfig
from d2v_plugin.verbs.train.config import TrainConfig
from tools.benchmark.cards import CARDS, Card, find_card
from tools.benchmark.needs import Model, Needs
from tools.benchmark.update import ROOT, resolve_recipe

Parallelism = Literal["ddp", "fsdp", "hsdp"]

RECIPES: Final = tuple(
    ROOT / "recipes" / f"{name}.yaml"
    for name in (
        *("image/pretrain_base", "image/pretrain_large", "image/pretrain_huge14"),
        *("audio/pretrain_base", "audio/pretrain_large", "text/pretrain_base"),
    )
)
SAMPLE_RATE: Final = 16_000
RECORDING: Final = round(15.6 * SAMPLE_RATE)
READ_PER_CORE: Final = {Modality.IMAGE: 838.0, Modality.AUDIO: 4790 / 15.6, Modality.TEXT: 306_000.0}
"""Samples that a core reads from files in a second, see recipes/speed/README.md."""


@dataclass(frozen=True)
class Run:
    """What a recipe asks for."""

    name: str
    modality: Modality
    samples: float
    """In an update, over all GPUs."""

    updates: int
    flops: float
    """Of one sample."""

    activations: float
    """Bytes that one sample leaves for the backward pass."""

    model: Model


@dataclass(frozen=True)
class Cluster:
    """GPUs, and how the model is laid out on them."""

    card: Card
    gpus: int
    parallelism: Parallelism = "ddp"
    per_machine: int = 8
    network: float = 50e9
    """Bytes/s that a GPU sends to other machines, one way: 400 Gbit/s."""

    @property
    def shards(self) -> int:
        """Among how many GPUs the model and its optimizer are divided."""
        return {"ddp": 1, "fsdp": self.gpus, "hsdp": min(self.gpus, self.per_machine)}[self.parallelism]


@dataclass(frozen=True)
class Cost:
    """What a run costs on a cluster."""

    samples: float
    """Of an update on each GPU."""

    passes: int
    """Micro-batches that they are computed in."""

    compute: float
    """Seconds of an update."""

    exposed: float
    """Seconds of an update in which GPUs wait for each other's data."""

    hours: float
    state: float
    """Bytes on each GPU of weights, gradients, moments and teacher."""

    activations: float
    """Bytes on each GPU."""

    reads: float
    """Samples that each GPU needs in a second."""


def read_run(path: Path) -> Run:
    """Count what a pre-training recipe takes."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"dataset": {"config_overrides": {"path": folder}}}
        context = resolve_recipe(path, changes, Path(folder), torch.device("cpu"))
    config, needs = context.get_config_as(TrainConfig), Needs(context)
    task = config.task.config
    samples: float
    shape: tuple[int, ...]
    match task:
        case ImagePretrainingConfig():
            modality, samples, shape = Modality.IMAGE, task.batch_size, (task.image.num_channels, *as_grid(task.image.size))
        case AudioPretrainingConfig():
            modality, samples, shape = Modality.AUDIO, task.batches_per_update * task.max_num_elements / RECORDING, (RECORDING,)
        case TextPretrainingConfig():
            modality, samples, shape = Modality.TEXT, task.batch_size, (task.tokens_per_sample,)
        case _:
            raise SystemExit(f"{path}: no recipe of pre-training on one modality.")
    assert config.regime.num_steps is not None
    one = torch.Size((1, *shape))
    name = f"{path.parent.name}/{path.stem}"

    return Run(name, modality, samples, config.regime.num_steps, needs.flops(one), needs.activations(one), needs.size)


def estimate(run: Run, cluster: Cluster, mfu: float) -> Cost | None:
    """:returns: None = it does not run so: a GPU has less than a sample, or not the memory for one."""
    samples, model = run.samples / cluster.gpus, run.model
    state = (16 * model.trained + 4 * (model.teacher + model.other)) / cluster.shards
    room = (0.85 * cluster.card.memory * 2**30 - state) / run.activations
    if samples < 1 or room < 1:
        return None
    # Whole samples in equal parts; recordings are divided as it comes.
    passes = next(n for n in range(1, int(samples) + 2) if samples / n <= room and (samples % n == 0 or samples != int(samples)))
    compute = run.samples * run.flops / (cluster.gpus * cluster.card.half * mfu)
    exposed = max(0.0, passes * transfer_time(model, cluster) - compute * 2 / 3)
    seconds = compute + exposed

    return Cost(
        samples,
        passes,
        compute,
        exposed,
        run.updates * seconds / 3600,
        state,
        samples / passes * run.activations,
        samples / seconds,
    )


def transfer_time(model: Model, cluster: Cluster) -> float:
    """Seconds in which GPUs exchange gradients, and shards of the model, for one forward and backward pass.

    To gather or scatter something, each of n GPUs of a machine sends (n - 1) / n of it, and so does each of m machines, through
    the network of all of its GPUs. To reduce it for all is a scattering and a gathering.
    """
    local, machines = min(cluster.gpus, cluster.per_machine), -(-cluster.gpus // cluster.per_machine)
    within = (local - 1) / local / cluster.card.link
    between = (machines - 1) / machines / (local * cluster.network)
    gradients = 4 * model.trained
    # Weights for the forward and again for the backward pass, the teacher's for its only one.
    sharded = 4 * (2 * model.trained + model.teacher) + gradients
    match cluster.parallelism:
        case "ddp":
            return 2 * gradients * (within + between)
        case "fsdp":
            return sharded * (within + between)
        case "hsdp":
            return sharded * within + 2 * gradients * between


HEADER = """\
| recipe | GPUs | samples a GPU | s / update | waits | hours | GPU-hours | state + activations, GiB | samples/s | cores |
|---|---|---|---|---|---|---|---|---|---|"""


def format_row(run: Run, cluster: Cluster, mfu: float) -> str:
    where = f"| {run.name} | {cluster.gpus}, {cluster.parallelism} "
    cost = estimate(run, cluster, mfu)
    if cost is None:
        return (
            where + f"| does not run: {run.samples:.3g} samples an update, {run.activations / 2**30:.2f} GiB each | | | | | | | |"
        )
    seconds = cost.compute + cost.exposed
    samples = f"{cost.samples / cost.passes:.3g}" + (f" x {cost.passes}" if cost.passes > 1 else "")

    return where + (
        f"| {samples} | {seconds:.3g} | {cost.exposed / seconds:.0%} | {cost.hours:.3g} | {cost.hours * cluster.gpus:,.0f} "
        f"| {cost.state / 2**30:.1f} + {cost.activations / 2**30:.1f} | {cost.reads:,.0f} "
        f"| {cost.reads / READ_PER_CORE[run.modality]:.2g} |"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--recipes", type=Path, nargs="+", default=RECIPES, metavar="FILE", help="default: data2vec 2.0")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 16, 64], metavar="N", help="default: 1 8 16 64")
    parser.add_argument("--parallelism", nargs="+", choices=("ddp", "fsdp", "hsdp"), default=["ddp"], help="default: ddp")
    parser.add_argument("--card", choices=[card.name for card in CARDS], default="H200", help="default: H200")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the data sheet's rate that is reached (default: 0.4)")
    parser.add_argument(
        "--measured", type=Path, metavar="FILE", help="take the share that rows of `step --json` have, where they do"
    )
    parser.add_argument("--network", type=float, default=50, help="GB/s from a GPU to other machines (default: 50)")


def run(arguments: argparse.Namespace) -> None:
    if not 0.0 < arguments.mfu <= 1.0 or min(arguments.gpus) < 1 or arguments.network <= 0.0:
        raise SystemExit("`--mfu` must lie between 0 and 1, `--gpus` and `--network` must be positive.")
    measured = read_measured(arguments.measured) if arguments.measured is not None else {}
    card = find_card(arguments.card)
    assert card is not None
    runs, layouts = [read_run(path) for path in arguments.recipes], list[Parallelism](arguments.parallelism)
    print(HEADER)
    for run in runs:
        for gpus in arguments.gpus:
            for parallelism in layouts if gpus > 1 else layouts[:1]:
                cluster = Cluster(card, gpus, parallelism, network=arguments.network * 1e9)
                print(format_row(run, cluster, measured.get(run.modality, arguments.mfu)), flush=True)


def read_measured(path: Path) -> dict[Modality, float]:
    """The best utilisation of each modality in rows of the benchmark of updates."""
    best: dict[Modality, float] = {}
    rows: Sequence[dict[str, object]] = json.loads(path.read_text())
    for row in rows:
        if isinstance(mfu := row.get("mfu"), float):
            modality = Modality(str(row["arch"]).split("_")[0])
            best[modality] = max(mfu, best.get(modality, 0.0))
    if not best:
        raise SystemExit(f"{path}: no row has `mfu`; measure with `--device cuda` on a card of tools/benchmark/cards.py.")

    return best
