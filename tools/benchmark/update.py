"""One row of the benchmark of updates, measured in a process of its own: `python -m tools.benchmark.update SETTING_AS_JSON`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal
from unittest.mock import patch

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import fairseq2.recipe  # noqa: F401  # before fairseq2's other modules, which need it
import torch
from fairseq2.device import Device
from fairseq2.nn.utils.grad import clip_grad_norm, normalize_grads
from fairseq2.recipe.base import RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.fairseq2_private import register_library, register_main, register_train_recipe, remove_provider
from d2v_plugin.core.registry import create
from d2v_plugin.criteria.base import criterion_of
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Criterion
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.tasks.base import Task
from d2v_plugin.training.malloc import keep_freed_memory
from d2v_plugin.verbs.inheritance import resolve_bases
from d2v_plugin.verbs.train.config import TrainConfig
from d2v_plugin.verbs.train.recipe import TrainRecipe
from tools.benchmark.cards import find_card
from tools.benchmark.needs import Kept, Needs

ROOT = Path(__file__).parents[2]
GEMM_SIZES = {"cpu": (2048, 768, 3072), "cuda": (8192, 8192, 8192)}
"""Of the yardstick. A GPU would take that of the CPU 12 microseconds, most of it launch."""

SAMPLE_DATA = {Modality.AUDIO: "words", Modality.IMAGE: "digits", Modality.TEXT: "books"}


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    arch: str
    batch: int = 2
    views: int | None = None
    """None = the recipe's."""

    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"
    compiled: bool = False
    checkpoint_every: int | None = None
    """Every how many blocks one is computed again in the backward pass; None = none is."""

    seconds: float = 10.0
    """Length of the audio samples."""

    tokens: int = 512
    """Length of the text samples."""

    threads: int | None = None
    sample_data: bool = False
    """Read the repository's sample data with the recipe's task instead of drawing one batch."""

    budget: float = 20.0
    """Seconds to spend on timed updates; at least three are made."""

    @property
    def modality(self) -> Modality:
        return Modality(self.arch.split("_")[0])

    @property
    def num_audio_samples(self) -> int:
        return round(self.seconds * 16_000)


class Clock:
    """Adds up the time of the parts of an update; on a GPU it waits for the device, so that parts are told apart."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self._last = self._now()

    def stop(self, part: str) -> None:
        """What happened since the last call was ``part``."""
        now = self._now()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

        return time.perf_counter()


class Update:
    """Model, criterion and optimizer as the training recipe makes them, and what fairseq2's trainer does with them.

    Compiled are the student's blocks and the teacher's: fairseq2 compiles when the criterion is there.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.device = setting, torch.device(setting.device)
        # The recipe's output directory; nothing that is measured lies there.
        with tempfile.TemporaryDirectory() as folder:
            self.context = open_recipe(setting, Path(folder))
            self.config = self.context.get_config_as(TrainConfig)
            torch.manual_seed(self.config.common.seed)
            self.model = self.context.get_model_as(Data2VecModel)
            self.optimizer = self.context.get_optimizer()
        criterion = criterion_of(self.model)
        assert isinstance(criterion, Data2Vec2Criterion)
        self.criterion = criterion
        if self.device.type == "cpu":
            keep_freed_memory()
        self.optimizer.register_step_post_hook(self._average)
        self.number = 0
        self.stop: Callable[[str], None] = lambda part: None

    def run(self, batch: Batch) -> None:
        """One whole update; ``stop`` is told where each part ends."""
        self.number += 1
        step = StepInfo(self.number, self.config.common.seed)
        batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16) if self.setting.precision == "bf16" else nullcontext():
            output = self.model(batch, step)
        self.stop("forward")
        output.loss.backward()
        self.stop("backward")
        normalize_grads(self.model, self.context.gangs.dp, output.num_targets)
        clip_grad_norm(self.model, self.config.trainer.max_grad_norm)
        self.stop("clipping")
        self.optimizer.step()
        self.stop("teacher's average")
        self.optimizer.zero_grad(set_to_none=True)

    def _average(self, optimizer: object, args: object, kwargs: object) -> None:
        self.stop("optimizer")
        self.criterion.after_step(self.model, self.number)

    def batches(self) -> Iterator[Batch]:
        """The batches to measure with, without end."""
        if self.setting.sample_data:
            task = create(self.context.resolver, Task, self.config.task).open(self.context.get_dataset(), report=None)
            for batches in task.create_train_reader(self.context.gangs, self.config.common.seed):
                yield from batches
        batch = draw_batch(self.setting)
        while True:
            yield batch


def open_recipe(setting: Setting, output_dir: Path) -> RecipeContext:
    """The pre-training recipe of the arch with the changes of the setting; small archs take the base recipe."""
    modality, _, size = setting.arch.partition("_")
    path = ROOT / "recipes" / modality / f"pretrain_{size}.yaml"
    if not path.exists():
        path = path.with_name("pretrain_base.yaml")
    criterion: dict[str, Any] = {}
    if setting.views is not None:
        criterion["num_views"] = setting.views
    if path.stem != f"pretrain_{size}":
        criterion["targets"] = {"num_layers": ARCHS[setting.arch]().depth}
    task: dict[str, Any]
    match setting.modality:
        case Modality.AUDIO:
            max_num_elements = setting.batch * setting.num_audio_samples
            task = {"batches_per_update": 1, "max_num_elements": max_num_elements, "min_sample_size": 0}
        case Modality.TEXT:
            task = {"batch_size": setting.batch, "tokens_per_sample": setting.tokens}
        case Modality.IMAGE:
            image = ARCHS[setting.arch]().image
            assert image is not None
            task = {"batch_size": setting.batch, "image": {"size": image.image_size}}
    changes: dict[str, Any] = {
        "model": {"arch": setting.arch, "compile": setting.compiled},
        "criterion": {"config": criterion},
        "task": {"config": task},
        "dataset": {"config_overrides": {"path": str(ROOT / "manifests" / SAMPLE_DATA[setting.modality])}},
    }
    if setting.checkpoint_every is not None:
        checkpointing = {"mode": "layerwise", "every_nth_layer": setting.checkpoint_every}
        changes["trainer"] = {"activation_checkpointing": checkpointing}
    device = torch.device("cuda", 0) if setting.device == "cuda" else torch.device(setting.device)

    return resolve_recipe(path, changes, output_dir, device)


def resolve_recipe(path: Path, changes: dict[str, Any], output_dir: Path, device: torch.device) -> RecipeContext:
    """A training recipe with changes, none of its parts made yet."""
    container, recipe = DependencyContainer(), TrainRecipe()
    register_library(container)
    remove_provider(container, Device)  # which takes a GPU wherever there is one
    container.register(Device, lambda resolver: device)
    register_train_recipe(container, recipe)
    args = Namespace(config_file=path, config_overrides=[changes], output_dir=output_dir, checkpoint_dir=None)
    register_main(container, resolve_bases(args), recipe)

    return RecipeContext(container)


def count_needs(setting: Setting) -> Needs:
    """What samples of the setting take."""
    with tempfile.TemporaryDirectory() as folder:
        return Needs(open_recipe(replace(setting, device="cpu", compiled=False, checkpoint_every=None), Path(folder)))


def draw_batch(setting: Setting) -> Batch:
    generator = torch.Generator().manual_seed(1)
    config = ARCHS[setting.arch]()
    match setting.modality:
        case Modality.AUDIO:
            inputs = torch.randn(setting.batch, setting.num_audio_samples, generator=generator)
        case Modality.IMAGE:
            assert config.image is not None
            height, width = config.image.image_shape
            inputs = torch.randn(setting.batch, config.image.num_channels, height, width, generator=generator)
        case Modality.TEXT:
            assert config.text is not None
            inputs = torch.randint(4, config.text.vocab_size, (setting.batch, setting.tokens), generator=generator)

    return Batch(setting.modality, inputs, torch.arange(setting.batch))


def measure_gemm(setting: Setting, seconds: float) -> float:
    """FLOP/s that one large matrix product sustains for so long."""
    rows, inner, columns = GEMM_SIZES[setting.device]
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    device = torch.device(setting.device)
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(inner, columns, device=device, dtype=dtype)
    out = a @ b
    clock = Clock(device)
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        for _ in range(5 if device.type == "cpu" else 20):
            torch.mm(a, b, out=out)
            count += 1
        clock.stop("gemm")

    return 2 * rows * inner * columns * count / clock.parts["gemm"]


SYNCHRONISING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}


class SynchronisationCounter(TorchDispatchMode):
    """Counts operators whose result the host waits for; on a CPU they show what a GPU would wait for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ in SYNCHRONISING

        return function(*args, **(kwargs or {}))


def count_synchronisations(run: Callable[[], None], device: torch.device) -> int:
    if device.type == "cpu":
        with SynchronisationCounter() as counter:
            run()
        return int(counter.count)

    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    torch.cuda.set_sync_debug_mode("default")

    return sum("synchroniz" in str(warning.message) for warning in caught)


def measure_memory(update: Update, batch: Batch) -> dict[str, float]:
    """GiB of what model and optimizer hold, and of what a forward pass leaves for the backward pass."""
    model, teacher = update.model, {id(p) for p in update.criterion.teacher.parameters()}
    kept, decode = Kept(model.parameters()), model.decode
    gradients = drawn = 0

    def count_noise(*args: Any) -> Tensor:
        nonlocal drawn
        drawn = args[-1].nbytes
        return decode(*args)

    def count_gradients(part: str) -> None:
        nonlocal gradients
        if part == "backward":
            gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)

    with patch.object(model, "decode", count_noise), patch.object(update, "stop", count_gradients), kept.watch():
        update.run(batch)
    states = (value for state in update.optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    sizes = {
        "weights": sum(p.nbytes for p in model.parameters() if id(p) not in teacher),
        "gradients": gradients,
        "moments": sum(value.nbytes for value in states if value.dim() > 0),  # not the counters of updates
        "teacher": sum(p.nbytes for p in update.criterion.teacher.parameters()),
        "activations": kept.num_bytes,
        "noise": drawn,
    }

    return {part: size / 2**30 for part, size in sizes.items()}


def read_peak_memory(device: torch.device) -> float:
    """GiB: of the process, or of the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())

    # Not `ru_maxrss`, which begins with what the parent process held.
    return int(status["VmHWM"].split()[0]) / 2**20


def measure(setting: Setting) -> dict[str, Any]:
    """Run updates of the setting: the row of the table, and more."""
    device = torch.device(setting.device)
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    at_start = read_peak_memory(torch.device("cpu"))
    update = Update(setting)
    batches = update.batches()
    moment = min(0.3, setting.budget)
    gemm = [measure_gemm(setting, moment) for _ in range(2)]
    for _ in range(2 if device.type == "cpu" else 10):
        update.run(next(batches))

    whole: list[float] = []
    parts: list[dict[str, float]] = []
    shapes: list[torch.Size] = []
    start = time.perf_counter()
    while len(whole) < 3 or time.perf_counter() - start < setting.budget:
        clock = Clock(device)
        update.stop = clock.stop if device.type == "cpu" else lambda part: None
        batch = next(batches)
        clock.stop("loader")
        begin = clock._now()
        update.run(batch)
        whole.append(clock._now() - begin + clock.parts["loader"])
        shapes.append(batch.inputs.shape)
        parts.append(clock.parts)
        gemm.append(measure_gemm(setting, moment))
    peak = read_peak_memory(device)
    if device.type == "cuda":
        for one in parts:
            clock = Clock(device)
            update.stop = clock.stop
            update.run(batch)
            one |= clock.parts
    update.stop = lambda part: None
    host_synchronisations = count_synchronisations(lambda: update.run(batch), device)
    memory = measure_memory(update, batch)
    needs = count_needs(setting)
    flops = sum(map(needs.flops, shapes)) / len(whole)
    seconds, rate = median(whole), flops / median(whole)
    card = find_card(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    sheet = None if card is None else card.half if setting.precision == "bf16" else card.tf32

    return {
        **asdict(setting),
        "views": update.criterion.config.num_views,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "seconds_per_update": seconds,
        "fastest_update": min(whole),
        "updates": len(whole),
        "samples_per_second": sum(shape[0] for shape in shapes) / len(whole) / seconds,
        "gflop_per_update": flops / 1e9,
        "model_gflops": rate / 1e9,
        "gemm_gflops": max(gemm) / 1e9,
        "share": rate / max(gemm),
        "card": None if card is None else card.name,
        "mfu": None if sheet is None else rate / sheet,
        "peak_memory_gib": peak,
        "memory_after_imports_gib": at_start,
        "memory_gib": memory,
        "host_synchronisations": host_synchronisations,
        "parts": {part: median(one[part] for one in parts) for part in parts[0]},
    }


if __name__ == "__main__":
    print(json.dumps(measure(Setting(**json.loads(sys.argv[1])))))
