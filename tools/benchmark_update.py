"""One row of the step benchmark, measured in a process of its own: `python tools/benchmark_update.py SETTING_AS_JSON`."""

from __future__ import annotations

import json
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent.parent))  # also in a mere checkout

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import fairseq2.recipe  # noqa: F401  # before fairseq2's other modules, which need it
import torch
from benchmark_flops import Shape, count_update
from fairseq2.gang import create_fake_gangs
from fairseq2.nn.utils.grad import clip_grad_norm, normalize_grads
from fairseq2.runtime.dependency import DependencyContainer
from torch.utils._python_dispatch import TorchDispatchMode

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.fairseq2_private import RecipeConfigHolder, register_library, register_main, register_train_recipe
from d2v_plugin.core.registry import create
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Criterion
from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig, TextManifest
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.parallel import apply_activation_checkpointing, compile_blocks
from d2v_plugin.tasks.base import Task
from d2v_plugin.training.malloc import keep_freed_memory
from d2v_plugin.training.optimizer import build_adamw
from d2v_plugin.verbs.train.recipe import TrainRecipe

ROOT = Path(__file__).parent.parent
GEMM_SIZE = (2048, 768, 3072)
SAMPLE_DATA = {Modality.AUDIO: "words", Modality.IMAGE: "digits", Modality.TEXT: "books"}
DATASETS = {Modality.AUDIO: AudioManifest, Modality.IMAGE: ImageManifest, Modality.TEXT: TextManifest}


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
    """Model, criterion and optimizer of a recipe, and what fairseq2's trainer does with them in every update."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.device = setting, torch.device(setting.device)
        self.container, self.config = load_recipe(setting)
        torch.manual_seed(self.config.common.seed)
        self.gangs = create_fake_gangs(self.device)
        self.model = create_model(ARCHS[setting.arch]()).to(self.device)
        if setting.compiled:
            compile_blocks(self.model)
        criterion = create(self.container, Criterion, self.config.criterion)
        assert isinstance(criterion, Data2Vec2Criterion)
        criterion.build(self.model)
        self.model.criterion = self.criterion = criterion
        self.model.requires_grad_(True).train()
        if setting.checkpoint_every is not None:
            apply_activation_checkpointing(self.model, setting.checkpoint_every)
        self.optimizer = build_adamw(self.model, self.config.optimizer.config)
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
        normalize_grads(self.model, self.gangs.dp, output.num_targets)
        clip_grad_norm(self.model, self.config.trainer.max_grad_norm)
        self.stop("clipping")
        self.optimizer.step()
        self.stop("teacher's average")
        self.optimizer.zero_grad(set_to_none=True)

    def _average(self, optimizer: object, args: object, kwargs: object) -> None:
        self.stop("optimizer")
        self.criterion.after_step(self.model, self.number)

    def batches(self) -> Iterator[Batch]:
        setting = self.setting
        if setting.sample_data:
            task = create(self.container, Task, self.config.task)
            manifest = ManifestConfig(path=ROOT / "manifests" / SAMPLE_DATA[setting.modality])
            opened = task.open(DATASETS[setting.modality].open(manifest), report=None)
            for batches in opened.create_train_reader(self.gangs, self.config.common.seed):
                yield from batches
        batch = draw_batch(setting)
        while True:
            yield batch

    def count_flops(self, batch: Batch) -> float:
        modality, frontend = self.setting.modality, self.model.frontend()
        input_length = batch.inputs.size(-1)
        num_tokens = frontend.output_length(input_length)
        grid: tuple[int, ...] = (num_tokens,)
        if modality is Modality.IMAGE:
            grid = (frontend.side, frontend.side)  # type: ignore[assignment]
            num_tokens = grid[0] * grid[1]
        settings, sampler = self.criterion.settings[modality], self.criterion.samplers[modality]
        shape = Shape(batch.num_examples, settings.num_views, num_tokens, sampler.num_masked(grid), input_length)

        return sum(count_update(self.model.config, shape, settings.teacher_scope).values())


def load_recipe(setting: Setting) -> tuple[DependencyContainer, Any]:
    """The pre-training recipe of the arch with what the setting changes; small archs take the base recipe."""
    modality, _, size = setting.arch.partition("_")
    path = ROOT / "recipes" / modality / f"pretrain_{size}.yaml"
    if not path.exists():
        path = path.with_name("pretrain_base.yaml")
    changes: dict[str, Any] = {"model": {"arch": setting.arch}, "criterion": {"config": {}}, "task": {"config": {}}}
    if setting.views is not None:
        changes["criterion"]["config"]["num_views"] = setting.views
    if path.stem != f"pretrain_{size}":
        changes["criterion"]["config"]["targets"] = {"num_layers": ARCHS[setting.arch]().depth}
    match setting.modality:
        case Modality.AUDIO:
            changes["task"]["config"] = {
                "batches_per_update": 1,
                "max_num_elements": setting.batch * setting.num_audio_samples,
                "min_sample_size": 0,
            }
        case Modality.TEXT:
            changes["task"]["config"] = {"batch_size": setting.batch, "tokens_per_sample": setting.tokens}
        case Modality.IMAGE:
            image = ARCHS[setting.arch]().image
            assert image is not None
            changes["task"]["config"] = {"batch_size": setting.batch, "image": {"size": image.image_size}}
    container, recipe = DependencyContainer(), TrainRecipe()
    register_library(container)
    register_train_recipe(container, recipe)
    register_main(container, Namespace(config_file=path, config_overrides=[changes]), recipe)

    return container, container.resolve(RecipeConfigHolder).config


def draw_batch(setting: Setting) -> Batch:
    generator = torch.Generator().manual_seed(1)
    config = ARCHS[setting.arch]()
    match setting.modality:
        case Modality.AUDIO:
            inputs = torch.randn(setting.batch, setting.num_audio_samples, generator=generator)
        case Modality.IMAGE:
            assert config.image is not None
            size = config.image.image_size
            inputs = torch.randn(setting.batch, config.image.num_channels, size, size, generator=generator)
        case Modality.TEXT:
            assert config.text is not None
            inputs = torch.randint(4, config.text.vocab_size, (setting.batch, setting.tokens), generator=generator)

    return Batch(setting.modality, inputs, torch.arange(setting.batch))


def measure_gemm(setting: Setting, seconds: float = 0.3) -> float:
    """FLOP/s that one large matrix product sustains for so long."""
    rows, inner, columns = GEMM_SIZE
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    device = torch.device(setting.device)
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(inner, columns, device=device, dtype=dtype)
    out = a @ b
    clock = Clock(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(5 if device.type == "cpu" else 200):
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


def read_peak_memory(device: torch.device) -> float:
    """GiB: of the process, or of the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())

    # Not `ru_maxrss`, which begins with what the parent process held.
    return int(status["VmHWM"].split()[0]) / 2**20


def measure(setting: Setting) -> dict[str, Any]:
    """Run updates of the setting; see README for what the entries mean."""
    device = torch.device(setting.device)
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    at_start = read_peak_memory(torch.device("cpu"))
    update = Update(setting)
    batches = update.batches()
    gemm = [measure_gemm(setting) for _ in range(2)]
    for _ in range(2 if device.type == "cpu" else 10):
        update.run(next(batches))

    whole: list[float] = []
    parts: list[dict[str, float]] = []
    samples, flops = 0, 0.0
    start = time.perf_counter()
    while len(whole) < 3 or time.perf_counter() - start < setting.budget:
        clock = Clock(device)
        update.stop = clock.stop if device.type == "cpu" else lambda part: None
        batch = next(batches)
        clock.stop("loader")
        flops += update.count_flops(batch)
        begin = clock._now()
        update.run(batch)
        whole.append(clock._now() - begin + clock.parts["loader"])
        samples += batch.num_examples
        parts.append(clock.parts)
        gemm.append(measure_gemm(setting))
    peak = read_peak_memory(device)
    if device.type == "cuda":
        for one in parts:
            clock = Clock(device)
            update.stop = clock.stop
            update.run(batch)
            one |= clock.parts
    update.stop = lambda part: None
    seconds, rate = median(whole), flops / len(whole) / median(whole)

    return {
        **asdict(setting),
        "views": update.criterion.config.num_views,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "seconds_per_update": seconds,
        "fastest_update": min(whole),
        "updates": len(whole),
        "samples_per_second": samples / len(whole) / seconds,
        "gflop_per_update": flops / len(whole) / 1e9,
        "model_gflops": rate / 1e9,
        "gemm_gflops": max(gemm) / 1e9,
        "share": rate / max(gemm),
        "peak_memory_gib": peak,
        "memory_after_imports_gib": at_start,
        "host_synchronisations": count_synchronisations(lambda: update.run(batch), device),
        "parts": {part: median(one[part] for one in parts) for part in parts[0]},
    }


if __name__ == "__main__":
    print(json.dumps(measure(Setting(**json.loads(sys.argv[1])))))
