"""Every recipe loads, and those of the published configurations have the published values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2] / "recipes"
# Those of tools/experiments/sweep.py and tools/experiments/study.py name recipes instead of being one.
RECIPES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml") if path.parent.name not in ("sweeps", "study"))

# config/v2 of the original, and EAT's config/pretraining_*.yaml:
# views, mask ratio, adjust, block size, EMA (start, end, steps), K, rate, warm-up, updates.
PUBLISHED = {
    "audio/pretrain_base.yaml": (8, 0.5, 0.05, 5, (0.999, 0.99999, 75_000), 8, 7.5e-4, 8_000, 400_000),
    "audio/pretrain_large.yaml": (12, 0.55, 0.1, 5, (0.9997, 1.0, 300_000), 16, 4e-4, 10_000, 600_000),
    "audio/eat_base.yaml": (16, 0.8, 0.07, 5, (0.9998, 0.99999, 100_000), 12, 5e-4, 53_333, 400_000),
    "audio/eat_large.yaml": (16, 0.75, 0.1, 5, (0.9998, 0.99999, 150_000), 24, 4e-4, 53_333, 400_000),
    "image/pretrain_base.yaml": (16, 0.8, 0.07, 3, (0.9998, 0.99999, 100_000), 10, 1e-3, 50_040, 375_300),
    "image/pretrain_large.yaml": (16, 0.75, 0.1, 3, (0.9998, 0.99999, 150_000), 18, 4e-4, 50_040, 375_300),
    "image/pretrain_huge16.yaml": (16, 0.75, 0.1, 3, (0.9998, 0.99995, 150_000), 24, 4e-4, 50_040, 375_300),
    "image/pretrain_huge14.yaml": (16, 0.75, 0.1, 3, (0.9998, 1.0, 300_000), 24, 4e-4, 50_040, 500_000),
    "text/pretrain_base.yaml": (8, 0.48, None, None, (0.9999, 0.99999, 100_000), 12, 2e-4, 4_000, 1_000_000),
    "text/pretrain_large.yaml": (8, 0.5, None, None, (0.9999, 0.99999, 100_000), 24, 1e-4, 4_000, 600_000),
    "text/pretrain_large_1m.yaml": (8, 0.5, None, None, (0.9999, 0.99999, 100_000), 24, 1e-4, 4_000, 1_000_000),
}
# Of the optimizer: betas, epsilon, weight decay; and the largest gradient norm.
ADAM = {
    "audio/pretrain_base.yaml": ([0.9, 0.98], 1e-6, 0.01, None),
    "audio/pretrain_large.yaml": ([0.9, 0.98], 1e-6, 0.01, 1.0),
    "audio/eat_base.yaml": ([0.9, 0.95], 1e-8, 0.05, 4.0),
    "audio/eat_large.yaml": ([0.9, 0.95], 1e-8, 0.05, 4.0),
    "image": ([0.9, 0.95], 1e-8, 0.05, 4.0),
    "text": ([0.9, 0.98], 1e-6, 0.01, 1.0),
}


def dump(command: Any, name: str) -> dict[str, Any]:
    outcome = command("recipe", "train", "--config-file", ROOT / name, "--dump-config")
    assert outcome.status == 0, outcome.err

    return YAML(typ="safe").load(outcome.out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads_and_says_how_to_run_it(command: Any, name: str) -> None:
    assert dump(command, name)["regime"]["num_steps"] > 0
    text = (ROOT / name).read_text()
    if not name.startswith("ablations/"):
        assert f"recipes/{name}" in text
        for word in ("Command:", "Hardware:", "Cost:", "Expected:"):
            assert word in text


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_has_the_published_values(command: Any, name: str) -> None:
    views, ratio, adjust, block_size, ema, k, lr, warmup, steps = PUBLISHED[name]
    betas, eps, decay, norm = ADAM.get(name) or ADAM[name.split("/")[0]]
    config = dump(command, name)
    criterion = config["criterion"]["config"]
    masking = criterion["masking"]["config"]

    assert criterion["num_views"] == views
    assert (masking["ratio"], masking.get("adjust"), masking.get("block_size")) == (ratio, adjust, block_size)
    assert tuple(criterion["ema"][key] for key in ("start", "end", "anneal_steps")) == ema
    assert criterion["targets"]["num_layers"] == k
    assert config["optimizer"]["config"]["lr"] == lr
    assert config["lr_scheduler"]["config"]["num_warmup_steps"] == warmup
    assert config["lr_scheduler"]["config"]["final_lr_scale"] == 0.0
    assert config["regime"]["num_steps"] == steps
    adam = config["optimizer"]["config"]
    assert (list(adam["betas"]), adam["eps"], adam["weight_decay"]) == (betas, eps, decay)
    assert config["trainer"]["max_grad_norm"] == norm


# config/v2/text_finetuning of the original: samples per update, warm-up, updates, rate, the score that chooses.
GLUE = {
    "cola": (16, 320, 5_336, 2e-5, "matthews"),
    "mnli": (32, 7_432, 123_873, 2e-5, "accuracy"),
    "mrpc": (16, 137, 2_296, 2e-5, "accuracy_and_f1"),
    "qnli": (32, 1_986, 33_112, 2e-5, "accuracy"),
    "qqp": (32, 28_318, 113_272, 2e-5, "accuracy_and_f1"),
    "rte": (16, 122, 2_036, 2e-5, "accuracy"),
    "sst_2": (32, 1_256, 20_935, 2e-5, "accuracy"),
    "sts_b": (16, 214, 3_598, 4e-5, "pearson_and_spearman"),
}


@pytest.mark.parametrize("task", GLUE)
def test_recipes_of_glue_have_the_published_values(command: Any, task: str) -> None:
    config = dump(command, f"text/finetune_glue_{task}.yaml")
    regime, adam, head = config["regime"], config["optimizer"]["config"], config["criterion"]["config"]
    found = (
        config["task"]["config"]["batch_size"],
        config["lr_scheduler"]["config"]["num_warmup_steps"],
        regime["num_steps"],
        adam["lr"],
        regime["score_metric"],
    )

    assert found == GLUE[task] and head["scores"][0] == regime["score_metric"]
    assert config["dataset"]["config_overrides"]["glue"] == task and config["task"]["config"]["max_length"] == 512
    assert (list(adam["betas"]), adam["eps"], adam["weight_decay"]) == ([0.9, 0.98], 1e-6, 0.1)
    assert config["lr_scheduler"]["name"] == "polynomial_decay" and config["trainer"]["max_grad_norm"] is None
    assert (head["pooling"], head["norm"], head["hidden"], head["dropout"]) == ("cls", False, True, 0.0)


# examples/wav2vec/config/finetuning of the original: batches per update, most samples in each, updates, rate, share of frames
# and of channels in masks, layer drop, updates of the output layer alone.
SPEECH = {
    "base_10m": (8, 3_200_000, 13_000, 5e-5, 0.65, 0.25, 0.1, 10_000),
    "base_1h": (8, 3_200_000, 13_000, 5e-5, 0.65, 0.25, 0.1, 10_000),
    "base_10h": (8, 3_200_000, 20_000, 5e-5, 0.65, 0.5, 0.05, 10_000),
    "base_100h": (8, 3_200_000, 80_000, 3e-5, 0.65, 0.5, 0.1, 0),
    "base_960h": (8, 3_200_000, 320_000, 1e-4, 0.5, 0.1, 0.1, 0),
    "data2vec1_base_100h": (8, 3_200_000, 80_000, 3e-5, 0.65, 0.5, 0.1, 0),
    "large_10m": (20, 1_280_000, 13_000, 1e-4, 0.65, 0.25, 0.1, 10_000),
    "large_1h": (20, 1_280_000, 13_000, 3e-4, 0.75, 0.25, 0.1, 10_000),
    "large_10h": (20, 1_280_000, 20_000, 1e-4, 0.75, 0.25, 0.1, 10_000),
    "large_100h": (20, 1_280_000, 80_000, 3e-5, 0.5, 0.5, 0.1, 10_000),
    "large_960h": (24, 1_280_000, 320_000, 3e-5, 0.5, 0.25, 0.1, 10_000),
}


@pytest.mark.parametrize("name", SPEECH)
def test_recipes_of_speech_recognition_have_the_published_values(command: Any, name: str) -> None:
    config = dump(command, f"audio/finetune_{name}.yaml")
    task, criterion, adam = (config[section]["config"] for section in ("task", "criterion", "optimizer"))
    masking, model = criterion["masking"], config["model"]["config_overrides"]
    found = (
        task["batches_per_update"],
        task["max_num_elements"],
        config["regime"]["num_steps"],
        adam["lr"],
        masking["probability"],
        masking["channel_probability"],
        model["layer_drop"],
        criterion["freeze_updates"],
    )

    assert found == SPEECH[name]
    assert config["model"]["arch"] == ("audio_large" if "large" in name else "audio_base")
    assert criterion["freeze_frontend"] and (masking["length"], masking["channel_length"]) == (10, 64)
    assert (list(adam["betas"]), adam["eps"], adam["weight_decay"]) == ([0.9, 0.98], 1e-8, 0.0)
    assert (model["dropout"], model["attention_dropout"], model["activation_dropout"]) == (0.0, 0.0, 0.1)
    if "data2vec1" not in name:
        assert (model["audio"]["prenet_layer_drop"], model["audio"]["prenet_dropout"]) == (model["layer_drop"], 0.0)
    rates = config["lr_scheduler"]["config"]
    assert (list(rates["stage_ratio"]), rates["start_lr_scale"], rates["final_lr_scale"]) == ([0.1, 0.4, 0.5], 0.01, 0.05)
    assert config["regime"]["score_metric"] == "wer"


def test_the_recipe_of_audioset_has_the_published_values(command: Any) -> None:
    config = dump(command, "audio/finetune_audioset.yaml")
    task, criterion, adam = (config[section]["config"] for section in ("task", "criterion", "optimizer"))

    assert (task["batches_per_update"], task["max_num_elements"], config["regime"]["num_steps"]) == (8, 2_560_000, 30_000)
    assert (adam["lr"], adam["head_lr"], config["lr_scheduler"]["config"]["num_warmup_steps"]) == (3e-5, 2e-4, 5_000)
    assert (criterion["pooling"], criterion["mixup"]) == ("linear_softmax", 0.5)
    assert (criterion["masking"]["probability"], criterion["masking"]["length"]) == (0.6, 5)
    assert config["model"]["config_overrides"] == {
        "dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.1, "layer_drop": 0.1
    }  # fmt: skip


# Updates, batch, rate, last rate, warm-up, weight decay, layer decay, stochastic depth of the last block, largest gradient norm.
IMAGENET = {
    "imagenet_base": (250_200, 512, 1e-3, 1e-6, 16_000, 0.05, 0.65, 0.1, None),
    "imagenet_large": (125_200, 512, 5e-4, 1e-7, 16_000, 0.05, 0.75, 0.2, 4.0),
    "imagenet_huge": (125_200, 512, 5e-4, 0.0, 16_000, 0.05, 0.75, 0.2, 4.0),
    "data2vec1_base": (125_100, 1024, 4e-3, 1e-6, 12_510, 0.0, 0.65, 0.2, None),
    "data2vec1_large": (62_550, 1024, 5e-3, 1e-6, 6_255, 0.05, 0.65, 0.25, None),
}


@pytest.mark.parametrize("name", IMAGENET)
def test_fine_tuning_on_imagenet_has_the_published_values(command: Any, name: str) -> None:
    updates, batch, lr, last_lr, warmup, decay, layer_decay, drop_path, norm = IMAGENET[name]
    config = dump(command, f"image/finetune_{name}.yaml")
    optimizer, task = config["optimizer"]["config"], config["task"]["config"]
    depth = config["model"]["config_overrides"]["drop_path"]

    assert (config["regime"]["num_steps"], task["batch_size"]) == (updates, batch)
    assert (optimizer["lr"], optimizer["weight_decay"], optimizer["layer_decay"]) == (lr, decay, layer_decay)
    schedule = config["lr_scheduler"]["config"]
    assert (schedule["num_warmup_steps"], schedule["final_lr_scale"] * lr) == (warmup, pytest.approx(last_lr))
    assert (depth[-1] if isinstance(depth, list) else depth) == drop_path
    assert config["trainer"]["max_grad_norm"] == norm
    assert config["criterion"]["config"]["label_smoothing"] == 0.1 and task["erasing"] == 0.25
    assert task["mixing"]["cutmix"] == 1.0
    if name.startswith("imagenet"):
        assert (task["mixing"]["mixup"], task["mixing"]["probability"]) == (0.7, 0.9)
        assert (optimizer["betas"], optimizer["eps"]) == ([0.9, 0.95], 1e-8)
