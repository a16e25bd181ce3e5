"""Units of settings: what a number counts or measures, by the name of its field."""

from __future__ import annotations

import re
from typing import Final

UPDATES, EPOCHS, SHARE, PROBABILITY = "updates", "epochs", "share", "probability"

# The first pattern that matches a whole name counts.
_UNITS: Final = (
    (r"(start_|step_|save_)?timeout", "minutes"),
    (r".*_hours|.*_for_hours", "hours"),
    (r".*_seconds", "seconds"),
    (r".*_n_data_epochs|num_epochs|num_data_epochs", EPOCHS),
    (r"keep_(last|best)_n_checkpoints", "checkpoints"),
    (r"step|(.*_)?n_steps|num_steps|num_warmup_steps|anneal_steps|cycle_len|freeze_updates|length_window", UPDATES),
    (r"repeat|num_active_steps", UPDATES),
    (r"(start|final)_lr(_scale)?|lr|head_lr|lr_mul|eta_min", "per update"),
    (r"stage_ratio", "shares of the run"),
    (r"sample_rate|(low|high)_freq", "Hz"),
    (r"frame_(length|shift)", "milliseconds"),
    (r"(max|pad)_frames", "frames"),
    (r"num_mels", "bands"),
    (r"log_mel_(mean|std)", "of logarithms of powers"),
    (r"(max|min)_sample_size|max_num_elements", "samples of sound"),
    (r"batches_per_update|num_batches", "batches"),
    (r"(max_)?batch_size|num_samples|num_embedded|min_count|shard_size", "samples"),
    (r"max_num_tokens|tokens_per_sample|max_length|max_positions|vocab_size|num_extra_tokens|num_special_tokens", "tokens"),
    (r"pad_idx|mask_idx", "token id"),
    (r"image_size|patch_size|size", "pixels"),
    (r"num_patches|min_block|max_block", "patches"),
    (r"target_window|block_size|length|kernel_size|position_width", "positions"),
    (r"(.*_)?dim|num_channels|channel_length", "channels"),
    (r".*dropout|.*layer_drop|(.*_)?drop_path|(.*_)?probability|flip|erasing", PROBABILITY),
    (r"ratio|adjust|target_context|max_fraction|max_share|crop_scale|label_smoothing|(random|kept)_tokens|mixup|cutmix", SHARE),
    (r"mean|std|brightness|contrast|saturation", "of values in [0, 1]"),
    (r"mlp_ratio|projection_ratio|.*_scale|.*_weight|l2|.*_penalty|lm_weight|eval_resize|temperature_decay", "factor"),
    (r"(.*_)?depth|(num_)?layers|projection_layers|head_layers|every_nth_layer", "layers"),
    (r"num_threads", "threads"),
    (r"num_views", "views"),
    (r"seed", ""),
)


def find_unit(name: str, kind: str) -> str:
    """The unit of a field; empty if it is no number.

    :param name: of the field, without the sections it stands in.
    :param kind: its type, as it is annotated.
    """
    if not re.search(r"\b(int|float)\b", kind):
        return ""

    return next((unit for pattern, unit in _UNITS if re.fullmatch(pattern, name)), "number")
