"""Settings of the originals, as data, and what our recipes must have where they follow them.

``originals.json`` holds every key of every original file and the defaults of its code, apart from logging, saving and paths.
Each function below translates one kind of original into our keys. It has to take every key: what has no counterpart is passed
over with a reason, and a switch that we do not have must have the value that means "off".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONTENT = json.loads((Path(__file__).parent / "originals.json").read_text())
RECIPES: Mapping[str, Any] = CONTENT["originals"]
DEFAULTS: Mapping[str, Any] = CONTENT["defaults"]

Expected = dict[str, Any]
"""Our values by dotted key; a key without a dot is something that we have no setting for."""

DECODER_GROUP = "parameter group of the decoder"
EPOCHS = "limit of epochs"
POSITIONS = "positions by one convolution"

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
INCEPTION = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


class Original:
    """The settings of one original, defaults included; remembers which were taken."""

    def __init__(self, name: str) -> None:
        self.name = name
        entry = RECIPES[name]
        script = entry.get("script")
        self.content = DEFAULTS[script] | entry["values"] if script else with_defaults(entry["values"])
        self.values = dict(flatten(self.content))
        for key, value in self.values.items():
            self.values[key] = self.follow(value)
        self.left = set(self.values)

    def follow(self, value: Any) -> Any:
        """Values that point to others, such as ``${optimization.max_update}``."""
        found = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None

        return value if found is None or found[1] not in self.values else self.follow(self.values[found[1]])

    def __call__(self, key: str, default: Any = None) -> Any:
        """Take a value."""
        self.left.discard(key)

        return self.values.get(key, default)

    def off(self, prefix: str, **values: Any) -> None:
        """Take switches that we do not have: the original must have them off."""
        for key, value in values.items():
            assert self(f"{prefix}{key}", value) == value, (
                f"{prefix}{key} is {self.values[prefix + key]}, which we have no switch for"
            )

    def pass_over(self, reason: str, *patterns: str) -> None:
        """Take what changes no result here."""
        assert reason
        self.left -= {key for key in self.left if any(re.fullmatch(pattern, key) for pattern in patterns)}


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = merge(merged[key], value) if both else value

    return merged


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A fairseq file over the defaults of the code that reads it."""
    content = merge({"optimization": DEFAULTS["optimization"]}, values)
    for section in ("task", "model", "optimizer", "lr_scheduler", "criterion"):
        given = content.get(section)
        content[section] = given = {"_name": given} if isinstance(given, str) else dict(given or {})
        content[section] = merge(DEFAULTS.get(f"{section}.{given.get('_name')}", {}), given)
    for group in content["optimizer"].get("groups", {}).values():
        group["optimizer"] = merge(DEFAULTS["optimizer.adam"], group["optimizer"])
        group["lr_scheduler"] = merge(DEFAULTS["lr_scheduler.cosine"], group["lr_scheduler"])
    if content["model"]["_name"] == "data2vec_multi":
        modality = content["model"]["supported_modality"].lower()
        given = content["model"]["modalities"].get(modality, {})
        content["model"]["modalities"] = {modality: merge(DEFAULTS[f"modality.{modality}"], given)}

    return content


# Parts that kinds share


def expect_optimizer(o: Original) -> Expected:
    """Adam or groups of it, its schedule, clipping and the number of updates."""
    o.pass_over(
        "written down twice",
        "optimization.lr",
        "optimization.max_update",
        "lr_scheduler.lr",
        "lr_scheduler.max_update",
        "optimizer.lr",
        "optimizer.adam_betas",
        "optimizer.groups.*.(lr|max_update)",
        "optimization.debug_param_names",
    )
    o.pass_over(
        "how fairseq computes the same",
        ".*optimizer.use_old_adam",
        ".*optimizer.fp16_adam_stats",
        "optimization.use_bmuf",
        "optimization.skip_remainder_batch",
        "optimization.sentence_avg",
        "optimization.stop_min_lr",
        "optimization.stop_time_hours",
        "optimizer.dynamic_groups",
        "optimizer._name",
        ".*optimizer._name",
    )
    updates = o.values["optimization.max_update"]
    clip = o("optimization.clip_norm")
    names = sorted({key.split(".")[2] for key in o.values if key.startswith("optimizer.groups.")})
    main = next((name for name in ("default", "with_decay") if name in names), None)
    lr = o.values["optimization.lr"][0] if main is None else o(f"optimizer.groups.{main}.lr_float")
    adam = "optimizer." if main is None else f"optimizer.groups.{main}.optimizer."
    betas = o.values[f"{adam}adam_betas"]
    expected: Expected = {
        "regime.num_steps": updates,
        "trainer.max_grad_norm": clip or None,
        "optimizer.name": "data2vec_adamw",
        "optimizer.config.lr": lr,
        "optimizer.config.betas": [float(beta) for beta in (betas.strip("()").split(",") if isinstance(betas, str) else betas)],
        "optimizer.config.eps": o(f"{adam}adam_eps"),
        "optimizer.config.weight_decay": o(f"{adam}weight_decay"),
    }
    o.left.discard(f"{adam}adam_betas")
    for other in set(names) - {main}:
        o.pass_over("a group with the settings of the main one but its decay", f"optimizer.groups.{other}..*")
    expected |= expect_schedule(o, "lr_scheduler." if main is None else f"optimizer.groups.{main}.lr_scheduler.", updates)
    if main is not None:
        o.pass_over("the schedule of the groups counts", "lr_scheduler._name", f"optimizer.groups.{main}.lr_scheduler._name")

    return expected


def expect_schedule(o: Original, prefix: str, updates: int) -> Expected:
    ours = "lr_scheduler.config."
    match o(f"{prefix}_name"):
        case "cosine":
            o.off(prefix, warmup_init_lr=-1, t_mult=1.0, lr_period_updates=-1)
            o.pass_over("of later periods", f"{prefix}lr_shrink", f"{prefix}lr", f"{prefix}max_update")
            last = {f"{ours}final_lr": o(f"{prefix}min_lr"), f"{ours}start_lr": o.values[f"{prefix}min_lr"]}
            return {"lr_scheduler.name": "cosine_annealing", f"{ours}num_warmup_steps": o(f"{prefix}warmup_updates"), **last}
        case "tri_stage":
            o.off(prefix, warmup_steps=0, hold_steps=0, decay_steps=0)
            scales = {f"{ours}start_lr_scale": o(f"{prefix}init_lr_scale"), f"{ours}final_lr_scale": o(f"{prefix}final_lr_scale")}
            return {"lr_scheduler.name": "tri_stage", f"{ours}stage_ratio": o(f"{prefix}phase_ratio"), **scales}
        case "polynomial_decay":
            o.off(prefix, force_anneal=None)
            assert o(f"{prefix}total_num_update") in (updates, o.values.get(f"{prefix}total_num_update"))
            return {
                "lr_scheduler.name": "polynomial_decay",
                f"{ours}num_warmup_steps": o(f"{prefix}warmup_updates"),
                f"{ours}final_lr": o(f"{prefix}end_learning_rate"),
                f"{ours}power": o(f"{prefix}power"),
            }
        case name:
            raise AssertionError(f"{name} is not translated")


def expect_batches(o: Original, modality: str) -> Expected:
    """The size of an update, over all GPUs."""
    num_batches = o("distributed_training.distributed_world_size") * (o("optimization.update_freq") or [1])[0]
    o.off("optimization.", max_epoch=0)
    if modality == "audio":
        return {"task.config.batches_per_update": num_batches, "task.config.max_num_elements": o("dataset.max_tokens")}

    num_samples = o("dataset.batch_size") or o("dataset.max_tokens") // o.values["task.tokens_per_sample"]

    return {"task.config.batch_size": num_batches * num_samples}


def expect_audio(o: Original) -> Expected:
    o.off(
        "task.",
        multi_corpus_keys=None,
        multi_corpus_sampling_weights=None,
        binarized_dataset=False,
        enable_padding=False,
        num_batch_buckets=0,
        text_compression_level="none",
        post_save_script=None,
        subsample=1,
    )
    o.pass_over("how fairseq reads", "task.(_name|rebuild_batches|precompute_mask_config|seed|labels)")

    return {"task.config.audio.normalize": o("task.normalize"), "task.config.audio.sample_rate": o("task.sample_rate")}


def expect_crops(o: Original) -> Expected:
    return {
        **expect_audio(o),
        "task.config.min_sample_size": o("task.min_sample_size"),
        "task.config.max_sample_size": o("task.max_sample_size"),
    }


def expect_targets(o: Original, prefix: str = "model.") -> Expected:
    ours = "criterion.config.targets."
    names = {
        "num_layers": "average_top_k_layers",
        "batch_norm_layers": "batch_norm_target_layer",
        "instance_norm_layers": "instance_norm_target_layer",
        "layer_norm_layers": "layer_norm_target_layer",
        "layer_norm": "layer_norm_targets",
        "instance_norm": "instance_norm_targets",
    }

    return {f"{ours}{name}": o(f"{prefix}{key}", False) for name, key in names.items()}


def expect_ema(o: Original) -> Expected:
    ours = "criterion.config.ema."
    o.pass_over("the guard watches collapse", "model.min_(target|pred)_var")
    o.pass_over("the teacher is in fp32 here; norms are logged", "model.(ema_same_dtype|log_norms|seed|max_update)")

    return {
        f"{ours}start": o("model.ema_decay"),
        f"{ours}end": o("model.ema_end_decay"),
        f"{ours}anneal_steps": o("model.ema_anneal_end_step"),
    }
