"""``fairseq2 recipe finetune``: from a pre-trained run and labelled data to a plan, which the training recipe then follows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fairseq2.recipe.error import RecipeError
from fairseq2.utils.config import StandardConfigMerger

from d2v_plugin.core.batch import Modality
from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.verbs.own.calibration import calibrate_fitting
from d2v_plugin.verbs.own.corpus import PAIRS
from d2v_plugin.verbs.own.description import Found, format_choices
from d2v_plugin.verbs.own.facts import Data, read_data, read_machine
from d2v_plugin.verbs.own.plan import round_to
from d2v_plugin.verbs.own.plan_file import PLAN_FILE, print_on_first_rank, read_plan, wait_for_plan, write_plan
from d2v_plugin.verbs.own.pretraining import find_data
from d2v_plugin.verbs.own.start import Start, find_start
from d2v_plugin.verbs.own.wish import Wish

_EPOCHS: Final = 20
_UPDATES: Final = (100, 4000)
_BATCH: Final = 32


def plan_finetuning(out: Path, wish: Wish) -> Path:
    """Plan a run, unless it has a plan already, and say what was chosen.

    :returns: the file of the plan, a recipe.
    :raises RecipeError: there is no pre-trained run, or no labels; says why.
    """
    path, source = out / PLAN_FILE, wish.setting("init.path")
    if source in (None, "null"):
        raise RecipeError("`init.path` is missing: `fairseq2 recipe finetune OUT --config init.path=RUN data=FOLDER`.")
    assert source is not None
    title = f"fairseq2 recipe finetune init.path={Path(source).absolute()} {wish}".strip()
    wait_for_plan(path)
    lines = read_plan(path, title)
    if lines is None:
        lines = _make(out, wish, Path(source), path, title)
    print_on_first_rank(lines)

    return path


def _make(out: Path, wish: Wish, source: Path, path: Path, title: str) -> list[str]:
    start, machine = find_start(str(source)), read_machine()
    found = _find_labelled(out, wish, start)
    recipe = plan_recipe(found.data, start, source, machine.num_processes)
    low, high = _UPDATES
    num_steps = wish.num_steps or min(high, max(low, _EPOCHS * found.data.num_labelled // _BATCH))
    if wish.seconds is not None or machine.device == "cuda":
        measured = calibrate_fitting(recipe, wish, seconds=5.0)
        if wish.seconds is not None:
            num_steps = max(20, int(0.8 * wish.seconds / measured.seconds))
    recipe["regime"] |= {"num_steps": num_steps}
    task, criterion = recipe["task"], recipe["criterion"]["name"]
    rows = [
        ("data", f"{found.data.num_labelled:,} labelled of {found.source}", "data=FOLDER"),
        ("task", f"{task['name']}, criterion {criterion}, {found.data.num_classes:,} different labels", "criterion.name=…"),
        ("model", f"{recipe['model']['arch']} of {source}", "init.path=RUN"),
        ("rate", f"{recipe['optimizer']['config']['lr']:g}, then a cosine", "optimizer.config.lr=…"),
        ("length", f"{num_steps:,} updates", "budget=5m or regime.num_steps=…"),
        ("score", f"{recipe['regime'].get('score_metric', 'loss')} on `valid`, every 20% of the run", "validation.splits=…"),
    ]
    lines = format_choices(rows)
    lines += [*(f"note: {note}" for note in found.notes), f"plan: {path}, a recipe; change a value by --config KEY=VALUE"]
    write_plan(path, title, lines, recipe)

    return lines


def _find_labelled(out: Path, wish: Wish, start: Start) -> Found:
    """The data to fine-tune on: those given, else those of pre-training.

    :raises RecipeError: they have no labels.
    """
    if wish.data is not None:
        found = find_data(out, wish, start)
    elif start.dataset is not None:
        found = Found(read_data(start.dataset, start.modality), start.dataset)
    else:
        raise RecipeError("`data` is missing, and the run of `init.path` does not say what it learned from: add `data=FOLDER`.")
    data = found.data
    if data.modality is not start.modality:
        raise RecipeError(
            f"{found.source} is {data.modality.value}, but the run of `init.path` learned from {start.modality.value}."
        )
    has_tables = data.modality is not Modality.TEXT or (data.path / PAIRS / "train.tsv").is_file()
    if not data.num_labelled or data.probe_split is None or not has_tables:
        raise RecipeError(
            f"{found.source} has no labels in both `train` and `valid`: put files into a folder for each class, or "
            "give JSON lines a `label`."
        )

    return found


def plan_recipe(data: Data, start: Start, source: Path, num_processes: int) -> dict[str, Any]:
    """Choose all settings but the number of updates."""
    modality, batch = data.modality.value, round_to(_BATCH, num_processes)
    overrides = StandardConfigMerger().merge(start.model["config_overrides"] or {}, {modality: {"decoder": None}})
    regime: dict[str, Any] = {
        **{
            f"{what}_every_n_steps": share
            for what, share in (("publish_metrics", "2%"), ("validate", "20%"), ("checkpoint", "20%"))
        },
        "keep_last_n_checkpoints": 1,
    }
    scored = regime | {"score_metric": "accuracy", "keep_best_n_checkpoints": 1}
    recipe: dict[str, Any] = {
        "dataset": {"family": f"{modality}_manifest", "config_overrides": {"path": str(data.path)}},
        "model": {**start.model, "config_overrides": overrides},
        "init": {"path": str(source.absolute())},
        "lr_scheduler": {"config": {"num_warmup_steps": "10%"}},
        "trainer": {"max_grad_norm": 4.0 if data.modality is Modality.IMAGE else 1.0},
        "regime": scored,
        "common": {"seed": 1},
    }
    match data.modality:
        case Modality.IMAGE:
            image = {**start.task["config"]["image"]}
            task: Mapping[str, Any] = {"batch_size": batch, "image": image, "rand_augment": {"num_operations": 0}}
            recipe["task"] = {"name": "image_classification", "config": task}
            recipe["criterion"] = {"name": "classification", "config": {"label_smoothing": 0.1}}
            recipe["optimizer"] = (
                _optimizer(2e-3, [0.9, 0.95], 1e-8, 0.05) if start.is_small else _optimizer(1e-3, [0.9, 0.999], 1e-8, 0.05)
            )
            recipe["optimizer"]["config"]["layer_decay"] = 0.75
        case Modality.AUDIO:
            is_speech = _has_transcripts(data.path)
            sound = max(160_000 if start.is_small else 1_600_000, data.lengths[2])
            task = {"batches_per_update": num_processes, "max_num_elements": sound, "audio": {"resample": data.resample}}
            recipe["task"] = {"name": "speech_recognition" if is_speech else "audio_classification", "config": task}
            recipe["criterion"] = (
                {"name": "ctc", "config": {"freeze_frontend": False}} if is_speech else {"name": "classification"}
            )
            recipe["optimizer"] = _optimizer(1e-3 if start.is_small else 1e-4, [0.9, 0.98], 1e-8, 0.01)
            recipe["regime"] = regime if is_speech else scored
        case Modality.TEXT:
            length = min(512, start.task["config"]["tokens_per_sample"])
            recipe["task"] = {"name": "text_classification", "config": {"batch_size": batch, "max_length": length}}
            layout = {"texts": ["text"], "label": "label"}
            config = {"path": str(data.path / PAIRS), "vocabulary": str(data.path), "layout": layout}
            recipe["dataset"] = {"family": "sentences", "config_overrides": config}
            recipe["criterion"] = {"name": "classification", "config": {"pooling": "cls", "norm": False, "hidden": True}}
            recipe["optimizer"] = _optimizer(1e-3 if start.is_small else 2e-5, [0.9, 0.98], 1e-6, 0.1)

    return recipe


def _optimizer(lr: float, betas: list[float], eps: float, weight_decay: float) -> dict[str, Any]:
    return {"config": {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}}


def _has_transcripts(path: Path) -> bool:
    """Whether labels are transcripts: classes are declared."""
    return AudioManifest.open(ManifestConfig(path=path, check_files=False)).split("train").declared_classes is None
