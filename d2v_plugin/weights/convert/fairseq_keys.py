"""Keys of fairseq's configurations of data2vec: which are known, and which values ours can follow.

Nothing is ignored unknowingly. A key is converted, or recorded for going on with pre-training (both: the caller's list); or only
one value of it has a counterpart here (:data:`FIXED`); or it changes nothing for a converted model (:data:`IDLE`). Released files
were written by earlier versions of fairseq, with keys of experiments that the published code does not have; the values that
switched those off are in :data:`FIXED`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from d2v_plugin.core.errors import CheckpointError

TARGET_KEYS: Final = (
    "average_top_k_layers",
    "end_of_block_targets",
    "batch_norm_target_layer",
    "instance_norm_target_layer",
    "layer_norm_target_layer",
    "layer_norm_targets",
    "instance_norm_targets",
)
LOSS_KEYS: Final = ("loss_beta", "loss_scale", "d2v_loss", "cls_loss", "recon_loss")
EMA_KEYS: Final = ("ema_decay", "ema_end_decay", "ema_anneal_end_step", "max_update")
MASK_KEYS: Final = (
    "mask_prob",
    "mask_prob_min",
    "mask_prob_adjust",
    "mask_length",
    "inverse_mask",
    "mask_dropout",
    "keep_masked_pct",
    "add_masks",
    "remove_masks",
    "mask_noise_std",
    "encoder_zero_mask",
    "mask_channel_prob",
    "mask_channel_length",
)
"""Masks of a modality of 2.0."""

SPEECH_MASK_KEYS: Final = (
    "mask_prob",
    "mask_length",
    "mask_selection",
    "mask_other",
    "no_mask_overlap",
    "mask_min_space",
    "require_same_masks",
    "mask_dropout",
    "mask_channel_prob",
    "mask_channel_length",
    "mask_channel_before",
    "mask_channel_selection",
    "mask_channel_other",
    "no_mask_channel_overlap",
    "mask_channel_min_space",
)
IMAGE_MASK_KEYS: Final = ("num_mask_patches", "min_mask_patches_per_block", "max_mask_patches_per_block")
"""Masks of 1.0."""

FIXED: Final[dict[str, dict[str, object]]] = {
    "model": {
        "cosine_loss_temp": 0,
        "mean_loss": False,
        "reconstruct_all": False,
        "alt_cls_targets": False,
        "recon_dim": 0,
        "qk_scale": None,
        "cosine_attention": False,
        "shift_targets_down_updates": 0,
        "shift_targets_down_scale": 1,
        "modality_discrim_depth": 0,
        "utterance_level": False,  # EAT's experiment with DINO's loss
    },
    "modality": {
        "learned_alibi": False,
        "mask_from_extra": False,
        "mask_from_extra_detached": False,
        "max_alibi_scale": 0,
        "max_alibi_grad": 0,
        "max_alibi_val": 0,
    },
    "audio": {"mlp_encoder": False},
    "image": {
        "transformer_decoder": False,
        "enc_dec_transformer": False,
        "fix_masks": False,
        "exact_mask_pct": False,
        "unmask_focal": False,
        "conv_pos_cfg": None,
        "conv_mae": False,
    },
    "text": {
        "learned_pos": True,
        "no_scale_embedding": True,
        "layernorm_embedding": True,
        "no_token_positional_embeddings": False,
    },
    "decoder": {
        "add_positions_masked": False,
        "add_positions_all": False,
        "final_layer_norm": False,
        "tanh_scale": 0,
        "project_first_residual": False,
        "residual_scale": 1,
        "remove_residual_noise": False,
        "post_residual_ln": False,
    },
    "data2vec_audio": {
        "layer_norm_first": False,
        "conv_bias": False,
        "layer_type": "transformer",
        "activation_fn": "gelu",
        "adp_num": -1,
        "attn_type": "",
        "pos_enc_type": "abs",
        "no_ln": False,
        "attention_layer_norm": False,
        # Only AudioSet's recipe names them; no code of fairseq reads them, and its model would refuse them.
        "self_attn_norm_type": None,
        "final_norm_type": None,
    },
    "data2vec_vision": {},
    "data2vec_text": {},
    "transformer": {
        "activation_fn": "gelu",
        "layernorm_embedding": True,
        "no_scale_embedding": True,
        "no_token_positional_embeddings": False,
        "use_factorized_embedding": False,
        "char_inputs": False,
        "base_layers": 0,
    },
    "encoder": {
        "normalize_before": False,
        "learned_pos": True,
        "layers_to_keep": None,
        "recurrent_stacking": None,
        "factorized_embed_dim": None,
        "add_adapters": False,
        "xformers_att_config": None,
    },
    "quant_noise": {"pq": 0, "scalar": 0},
}
"""By section: the only value of a key that a model here can have."""

IDLE: Final[dict[str, dict[str, str]]] = {
    "model": {
        "min_target_var": "stops a run",
        "min_pred_var": "stops a run",
        "log_norms": "a metric",
        "ema_same_dtype": "memory of a run in half precision; files are in fp32",
        "seed": "of a run",
        "skip_ema": "the weights show whether there is a teacher",
        "decoder_group": "names a group of the optimizer",
        "extra_tokens_group": "names a group of the optimizer",
        "bert_init": "initial weights",
        **dict.fromkeys(
            ("init_center_token_zero", "center_exp", "softmax_temperature_student", "softmax_temperature_teacher"),
            "read only with utterance_level",
        ),
        "modality_discrim_weight": "read only with modality_discrim_depth",
        "modality_discrim_ema": "read only with modality_discrim_depth",
    },
    "modality": {
        "type": "the section's name says it",
        "model_depth": "a copy of the model's depth",
        "alibi_max_pos": "read only with learned_alibi",
    },
    "audio": dict.fromkeys(("mlp_n_in", "mlp_dim", "mlp_layers"), "read only with mlp_encoder"),
    "image": {
        "focal_length": "read only with unmask_focal",
        "conv_mae_multiscale": "read only with conv_mae",
        "conv_mae_masking": "read only with conv_mae",
    },
    "text": {},
    "decoder": dict.fromkeys(("channel_mult", "decoder_transformer_layers"), "of decoders that the published code does not have"),
    "data2vec_audio": {
        "min_target_var": "stops a run",
        "min_pred_var": "stops a run",
        "checkpoint_activations": "memory of a run",
        "fp16": "of a run",
        "fixup_init": "initial weights",
        "conv_feature_no_norm_on_1d": "of convolutions that the published code does not have",
        "pct_holes": "masks that the published code does not have",
        "diversity_weight": "a loss that the published code does not have",
        "required_seq_len_multiple": "padding that is cut off again",
    }
    | dict.fromkeys(("adp_dim", "adp_act_fn", "adp_trf_idx"), "read only with adapters")
    | dict.fromkeys(("depthwise_conv_kernel_size", "max_positions"), "read only by Conformers")
    | dict.fromkeys(
        (
            "dropout_features",
            "final_dim",
            "logit_temp",
            "quantize_targets",
            "quantize_input",
            "same_quantizer",
            "target_glu",
            "quantizer_depth",
            "quantizer_factor",
            "latent_vars",
            "latent_groups",
            "latent_dim",
            "latent_temp",
            "num_negatives",
            "negatives_from_everywhere",
            "cross_sample_negatives",
            "codebook_negatives",
            "crop_seq_to_multiple",
        ),
        "wav2vec 2.0's, which data2vec inherits and does not read",
    ),
    "data2vec_vision": {"mlp_ratio": "not read by its blocks, which always have 4"},
    "data2vec_text": {
        "max_positions": "a copy of max_source_positions",
        "load_checkpoint_heads": "of loading in fairseq",
    },
    "transformer": {
        "decoder": "the model has none",
        "embed_path": "initial weights",
        "checkpoint_activations": "memory of a run",
        "offload_activations": "memory of a run",
        "min_params_to_wrap": "memory of a run",
        "export": "of TorchScript",
        "base_sublayers": "read only with base_layers",
        "base_shuffle": "read only with base_layers",
    }
    | dict.fromkeys(
        (
            "adaptive_input",
            "max_target_positions",
            "share_decoder_input_output_embed",
            "share_all_embeddings",
            "merge_src_tgt_embed",
            "adaptive_softmax_cutoff",
            "adaptive_softmax_dropout",
            "adaptive_softmax_factor",
            "tie_adaptive_weights",
            "tie_adaptive_proj",
            "no_cross_attention",
            "cross_self_attention",
            "no_decoder_final_norm",
        ),
        "of a decoder, which the model has not",
    ),
    "encoder": {"embed_path": "initial weights"}
    | dict.fromkeys(
        ("adapter_reduction_factor", "adapter_activation_fn", "adapter_lang_ids", "finetune_adapter"),
        "read only with adapters",
    ),
    "quant_noise": {"pq_block_size": "read only with pq"},
}
"""By section: keys that change nothing for a converted model, and why."""


def check_keys(section: Mapping[str, Any], kinds: str | tuple[str, ...], converted: Collection[str], *, place: str = "") -> None:
    """Make sure that every key of a section of a configuration is known, and that ours can follow its value.

    :param kinds: names of entries of :data:`FIXED` and :data:`IDLE`.
    :param converted: the keys that the caller converts.
    :param place: where the section stands, ending with a dot.
    :raises CheckpointError: a key is unknown or has a value that only fairseq has.
    """
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    fixed = {key: value for kind in kinds for key, value in FIXED[kind].items()}
    idle = {"_name", "arch"}.union(*(IDLE[kind] for kind in kinds))
    for key, value in section.items():
        if key in fixed and value != fixed[key]:
            raise CheckpointError(f"`{place}{key}` must be {fixed[key]!r}, but is {value!r}; no published model has another.")
    known = idle.union(fixed, converted)
    if unknown := ", ".join(f"`{place}{key}: {value!r}`" for key, value in section.items() if key not in known):
        raise CheckpointError(
            f"{unknown} {'are' if '`, `' in unknown else 'is'} not known here, and may change what the model computes. What does "
            "not can be left out by name (`--ignore-key`)."
        )
