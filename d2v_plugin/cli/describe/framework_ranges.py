"""Ranges that fairseq2 0.8.1 checks in the code of its sections, by class and field: told before that code is imported."""

from __future__ import annotations

from typing import Final

_REGIME: Final = (
    *("validate_every_n_steps", "validate_every_n_data_epochs", "checkpoint_every_n_steps", "checkpoint_every_n_data_epochs"),
    *("keep_last_n_checkpoints", "keep_best_n_checkpoints", "keep_checkpoint_every_n_steps"),
    *("publish_metrics_every_n_steps", "publish_metrics_every_n_data_epochs"),
)
_PROFILER: Final = ("skip_n_steps", "wait_n_steps", "num_warmup_steps")

FRAMEWORK_RANGES: Final = {
    **dict.fromkeys((f"RegimeSection.{name}" for name in ("num_steps", "num_data_epochs")), ">= 1"),
    **dict.fromkeys((f"RegimeSection.{name}" for name in _REGIME), ">= 1 or null"),
    **dict.fromkeys(("GangSection.tensor_parallel_size", "GangSection.timeout", "GradAccumulationConfig.num_batches"), ">= 1"),
    "TrainerSection.gc_every_n_steps": ">= 1 or null",
    "ActivationCheckpointingConfig.every_nth_layer": ">= 1",
    "TorchConfig.compiled_region_activation_memory_budget": ">= 0, <= 1",
    **dict.fromkeys((f"TorchProfilerConfig.{name}" for name in _PROFILER), ">= 0"),
    **dict.fromkeys(("TorchProfilerConfig.num_active_steps", "TorchProfilerConfig.repeat"), ">= 1"),
    **dict.fromkeys((f"{kind}LRConfig.num_warmup_steps" for kind in ("CosineAnnealing", "Noam", "PolynomialDecay")), ">= 0"),
    "MyleLRConfig.num_warmup_steps": ">= 1",
}
