"""Translation of the originals of pre-training into our keys."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from original_settings import (
    DECODER_GROUP,
    IMAGENET,
    INCEPTION,
    POSITIONS,
    Expected,
    Original,
    expect_batches,
    expect_crops,
    expect_ema,
    expect_optimizer,
    expect_targets,
    flatten,
)

from d2v_plugin.weights.convert.fairseq_config import convert_config, parse_conv_layers


def expect_data2vec2(o: Original) -> Expected:
    """Pre-training with data2vec 2.0; the model itself is compared by way of our converter."""
    modality = o("model.supported_modality").lower()
    prefix = f"model.modalities.{modality}."
    batches = expect_batches(o, modality)
    match modality:
        case "audio":
            data = expect_crops(o)
        case "image":
            o.off(
                "task.",
                beit_transforms=False,
                target_transform=False,
                no_transform=False,
                subsample=1,
                dataset_type="imagefolder",
            )
            o.pass_over("how fairseq reads", "task.(_name|rebuild_batches|precompute_mask_config|seed|key)")
            data = {"task.config.image.size": o("task.input_size"), **expect_mae_pictures()}
        case _:
            data = expect_blocks_of_text(o)
    o.off(
        prefix,
        keep_masked_pct=0,
        add_masks=False,
        remove_masks=False,
        encoder_zero_mask=True,
        mask_prob_min=None,
        mask_channel_prob=0.0,
    )
    o.pass_over("off with it", f"{prefix}mask_channel_length")
    inverse, length = o(f"{prefix}inverse_mask"), o(f"{prefix}mask_length")
    sampler = "random" if length == 1 else "inverse_block" if inverse else "block"
    masking = {"name": sampler, "config.ratio": o(f"{prefix}mask_prob")}
    masking |= (
        {}
        if length == 1
        else {
            "config.block_size": length,
            "config.adjust": o(f"{prefix}mask_prob_adjust"),
            "config.dropout": o(f"{prefix}mask_dropout"),
        }
    )
    o.pass_over("of blocks", f"{prefix}mask_(prob_adjust|dropout)")
    views = o("model.clone_batch")
    # The original sums its CLS loss over a GPU's views: see `cls_weight`.
    cls = o("model.cls_loss") * views * o.values.get("dataset.batch_size", 0)
    local, encoder_only = o(f"{prefix}ema_local_encoder"), o("model.ema_encoder_only")
    o.off("model.", skip_ema=False)
    o.pass_over(
        "compared by our converter",
        "model.(_name|depth|.*drop.*|num_heads|norm_.*|embed_dim|mlp_ratio|layer_norm_first|"
        f"shared_decoder|mae_init)|{re.escape(prefix)}.*",
    )
    model = convert_config(o.content["model"] | {"modalities": {modality: resolve(o, prefix)}}, vocab_size=50265)

    return {
        **expect_optimizer(o),
        **batches,
        **data,
        **expect_targets(o),
        **expect_ema(o),
        "criterion.name": "data2vec2",
        **{f"criterion.config.masking.{key}": value for key, value in masking.items()},
        "criterion.config.num_views": views,
        "criterion.config.noise_std": o.values[f"{prefix}mask_noise_std"],
        "criterion.config.teacher_scope": "blocks" if encoder_only else "all" if local else "context",
        "criterion.config.targets.end_of_block": o("model.end_of_block_targets"),
        "criterion.config.loss_beta": o("model.loss_beta"),
        "criterion.config.loss_scale": o("model.loss_scale"),
        "criterion.config.regression_weight": o("model.d2v_loss"),
        "criterion.config.cls_weight": cls,
        "criterion.config.reconstruction_weight": o("model.recon_loss"),
        # The width of the patch embedding is the model's, if it is not given.
        **{f"model.{key}": value for key, value in flatten(asdict(model)) if key != "image.embed_dim"},
        **({DECODER_GROUP: None} if o("model.decoder_group") else {}),
    }


def resolve(o: Original, prefix: str) -> dict[str, Any]:
    """A section of the original with its references followed."""
    section: dict[str, Any] = {}
    for key, value in o.values.items():
        if key.startswith(prefix):
            *parents, last = key.removeprefix(prefix).split(".")
            target = section
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value

    return section


def expect_mae_pictures() -> Expected:
    """The augmentation in mae_image_dataset.py of the original, which has no settings."""
    return {
        "task.config.image.crop_scale": [0.2, 1.0],
        "task.config.image.flip": 0.5,
        "task.config.image.color_jitter": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0},
        "task.config.image.mean": IMAGENET[0],
        "task.config.image.std": IMAGENET[1],
    }


def expect_blocks_of_text(o: Original) -> Expected:
    o.off(
        "task.",
        freq_weighted_replacement=False,
        mask_whole_words=False,
        mask_stdev=0.0,
        shorten_method="none",
        shorten_data_split_list="",
    )
    o.pass_over("how fairseq reads", "task.(_name|include_index|include_target_tokens|skip_masking|d2v2_multi|seed)")
    if o.values["task.skip_masking"]:
        o.pass_over("masks are the model's", "task.(mask_.*|random_token_prob|leave_unmasked_prob)")

    return {"task.config.tokens_per_sample": o("task.tokens_per_sample"), "task.config.break_mode": o("task.sample_break_mode")}


def expect_data2vec1(o: Original) -> Expected:
    """Pre-training with data2vec 1.0 in fairseq."""
    kind = o("model._name").removeprefix("data2vec_")
    modality = {"vision": "image"}.get(kind, kind)
    common = {
        **expect_optimizer(o),
        **expect_batches(o, modality),
        **expect_targets(o),
        **expect_ema(o),
        "criterion.name": "data2vec1",
        "criterion.config.loss_beta": o("model.loss_beta"),
        "criterion.config.loss_scale": o("model.loss_scale"),
        "criterion.config.target_feature": "block" if o("model.end_of_block_targets", False) else "ffn",
        "model.family": "data2vec1",
    }
    match kind:
        case "audio":
            o.off("model.", group_norm_target_layer=False)
            o.pass_over("names of norms that the code does not know", "model.(final|self_attn)_norm_type")
            # The number of frames in the masks is that of the row with the fewest: about 45 % of them.
            assert o("model.require_same_masks")
            scope = "layers" if o("model.ema_layers_only") else "encoder" if o("model.ema_transformer_only") else "all"
            o.pass_over("the wider scope", "model.ema_transformer_only")
            own = {
                **expect_crops(o),
                **expect_wav2vec_encoder(o),
                **expect_spans(o),
                "criterion.config.masking.config.ratio": 0.45,
            }
            own |= {"model.head_layers": 1, "model.audio.input_dropout": o("model.dropout_input")}
            o.pass_over(
                "of wav2vec 2.0's loss",
                "model.(dropout_features|final_dim|logit_temp|quantize.*|same_quantizer|target_glu|"
                "latent.*|num_negatives|.*negatives.*|max_positions|quantizer.*)",
            )
        case "text":
            scope = "layers" if o("model.ema_transformer_layers_only") else "encoder"
            own = {**expect_transformer(o), **expect_blocks_of_text(o)}
            masking = "criterion.config.masking.config."
            own |= {f"{masking}probability": o("task.mask_prob"), f"{masking}length": o("task.mask_multiple_length")}
            own |= {"criterion.config.random_tokens": o("task.random_token_prob")}
            own |= {"criterion.config.kept_tokens": o("task.leave_unmasked_prob")}
            own |= {"criterion.config.masking.name": "span", f"{masking}reach_over": True}
        case _:
            scope = "encoder" if o("model.ema_transformer_only") else "all"
            own = expect_beit_encoder(o)
            o.pass_over("of the trainer", "task._name")
            own |= {"task.config.image.size": o("task.input_size"), "task.config.image.mean": o("task.normalization_mean")}
            own |= {"task.config.image.std": o("task.normalization_std"), **expect_beit_pictures(0.4)}

    return {**common, **own, "criterion.config.teacher_scope": scope}


def expect_spans(o: Original) -> Expected:
    o.off("model.", mask_selection="static", mask_other=0, no_mask_overlap=False, mask_dropout=0, mask_channel_prob=0.0)
    o.pass_over("off with it", "model.(mask_min_space|mask_channel_.*|no_mask_channel_overlap)")
    masking = "criterion.config.masking."

    return {
        f"{masking}name": "span",
        f"{masking}config.probability": o("model.mask_prob"),
        f"{masking}config.length": o("model.mask_length"),
    }


def expect_wav2vec_encoder(o: Original) -> Expected:
    """The encoder that wav2vec 2.0 and data2vec 1.0 share, in the words of data2vec 1.0."""
    o.off("model.", activation_fn="gelu", layer_type="transformer", layer_norm_first=False, conv_bias=False)
    audio = "model.audio."

    return {
        f"{audio}conv_norm": {"default": "group_norm", "layer_norm": "layer_norm"}[o("model.extractor_mode")],
        f"{audio}conv_layers": parse_conv_layers(o("model.conv_feature_layers")),
        f"{audio}position_width": o("model.conv_pos"),
        f"{audio}position_groups": o("model.conv_pos_groups"),
        f"{audio}position_depth": o("model.pos_conv_depth"),
        f"{audio}local_grad_scale": o("model.feature_grad_mult"),
        "model.depth": o("model.encoder_layers"),
        "model.dim": o("model.encoder_embed_dim"),
        "model.ffn_dim": o("model.encoder_ffn_embed_dim"),
        "model.num_heads": o("model.encoder_attention_heads"),
        "model.dropout": o("model.dropout"),
        "model.attention_dropout": o("model.attention_dropout"),
        "model.activation_dropout": o("model.activation_dropout"),
        "model.layer_drop": o("model.encoder_layerdrop"),
    }


def expect_transformer(o: Original) -> Expected:
    t = "model.transformer."
    o.off(t, activation_fn="gelu", no_scale_embedding=True, layernorm_embedding=True)
    o.off(f"{t}encoder.", learned_pos=True, normalize_before=False)
    o.pass_over("one head, no checkpoint of it", "model.load_checkpoint_heads")

    return {
        "model.dropout": o(f"{t}dropout"),
        "model.attention_dropout": o(f"{t}attention_dropout"),
        "model.num_heads": o(f"{t}encoder.attention_heads"),
        "model.dim": o(f"{t}encoder.embed_dim"),
        "model.ffn_dim": o(f"{t}encoder.ffn_embed_dim"),
        "model.layer_drop": o(f"{t}encoder.layerdrop"),
        "model.depth": o(f"{t}encoder.layers"),
        "model.text.max_positions": o(f"{t}max_source_positions"),
        "model.head_layers": o("model.head_layers"),
        **expect_positions(o),
    }


def expect_positions(o: Original) -> Expected:
    return {"model.text.max_positions": o("model.max_positions")}


def expect_beit_encoder(o: Original) -> Expected:
    masking = "criterion.config.masking."
    o.off("model.", shared_rel_pos_bias=True, mlp_ratio=4)

    return {
        f"{masking}name": "beit_block",
        f"{masking}config.num_patches": o("model.num_mask_patches"),
        f"{masking}config.min_block": o("model.min_mask_patches_per_block"),
        f"{masking}config.max_block": o("model.max_mask_patches_per_block"),
        "model.image.image_size": o("model.image_size"),
        "model.image.patch_size": o("model.patch_size"),
        "model.image.num_channels": o("model.in_channels"),
        "model.image.layer_scale": o("model.layer_scale_init_value"),
        "model.image.relative_positions": "shared",
        "model.depth": o("model.depth"),
        "model.dim": o("model.embed_dim"),
        "model.num_heads": o("model.num_heads"),
        "model.attention_dropout": o("model.attention_dropout"),
        "model.drop_path": o("model.drop_path"),
    }


def expect_beit_pictures(jitter: float) -> Expected:
    """The augmentation of BEiT's pre-training, in datasets.py and image_pretraining.py of the originals."""
    return {
        "task.config.image.crop_scale": [0.08, 1.0],
        "task.config.image.flip": 0.5,
        "task.config.image.color_jitter": {"brightness": jitter, "contrast": jitter, "saturation": jitter},
    }


IMAGES_OF_IMAGENET = 1_281_167


def expect_run_cyclical(o: Original) -> Expected:
    """Pre-training with data2vec 1.0 on images in BEiT's code, from its command line."""
    large = "large" in o("model")
    batch = o("batch_size") * o("world_size")
    per_epoch, epochs = IMAGES_OF_IMAGENET // batch, o("epochs")
    assert o("layer_results") == "end" and not o("l2_loss") and o("ema_start_at") == 0 and o("train_interpolation") == "bicubic"
    o.off(
        "",
        ema_annealing_till_end=False,
        skip_ema_during_lr_decay_for_tri=False,
        var_w0=0.0,
        var_w1=0.0,
        mask_dropout_prob=-1.0,
        warmup_steps=-1,
        weight_decay_end=None,
        tri_phase_schedule=None,
        aug_level=-1,
        abs_pos_emb=False,
        no_target_layer_norm_last=False,
        rel_pos_bias=True,
        opt="adamw",
        loss_scale=-1,
    )
    o.pass_over("the decay is that of `ema_decay` from the first update on", "ema_decay_init")
    o.pass_over("the schedule is made without it, from 0", "warmup_lr")
    o.pass_over("off with it", "var_margin[01]", "momentum")
    targets = "criterion.config.targets."

    return {
        "model.family": "data2vec1",
        "model.arch": "vision_large" if large else "vision_base",
        "task.config.batch_size": batch,
        "task.config.image.size": o("input_size"),
        "regime.num_steps": per_epoch * epochs,
        **dict(zip(("task.config.image.mean", "task.config.image.std"), colours(o), strict=True)),
        **expect_beit_pictures(o("color_jitter")),
        "criterion.name": "data2vec1",
        "criterion.config.masking.name": "beit_block",
        "criterion.config.masking.config.num_patches": o("num_mask_patches"),
        "criterion.config.masking.config.min_block": o("min_mask_patches_per_block"),
        "criterion.config.masking.config.max_block": o("max_mask_patches_per_block"),
        "criterion.config.ema.start": o("ema_decay"),
        "criterion.config.ema.end": o.values["ema_decay"],
        "criterion.config.teacher_scope": "all",
        "criterion.config.full_precision_teacher": True,
        "criterion.config.target_feature": "block",
        f"{targets}num_layers": len(o("target_layers")),
        f"{targets}layer_norm_layers": o("post_target_layer_norm"),
        f"{targets}instance_norm_layers": o("post_target_instance_norm"),
        f"{targets}batch_norm_layers": o("target_batch_norm"),
        f"{targets}instance_norm": o("target_instance_norm"),
        f"{targets}layer_norm": True,
        "criterion.config.loss_beta": o("l1_beta"),
        "criterion.config.loss_scale": 1 / (1024 if large else 768),
        "model.drop_path": o("drop_path"),
        "model.attention_dropout": o("attn_drop_rate"),
        "model.image.layer_scale": o("layer_scale_init_value"),
        "model.image.relative_positions": "shared",
        "optimizer.config.lr": o("lr"),
        "optimizer.config.betas": [0.9, 0.999] if o("opt_betas") is None else None,
        "optimizer.config.eps": o("opt_eps"),
        "optimizer.config.weight_decay": o("weight_decay"),
        # It spares one-dimensional parameters, biases, and by name the CLS token.
        "optimizer.config.decay_tokens": ["mask_emb"],
        "lr_scheduler.config.num_warmup_steps": per_epoch * o("warmup_epochs"),
        "lr_scheduler.config.start_lr": 0.0,
        "lr_scheduler.config.final_lr": o("min_lr"),
        "trainer.max_grad_norm": o("clip_grad"),
    }


def colours(o: Original) -> tuple[list[float], list[float]]:
    return IMAGENET if o("imagenet_default_mean_and_std") else INCEPTION


def expect_mae(o: Original) -> Expected:
    """The authors' MAE in fairseq."""
    o.off("task.", beit_transforms=False, target_transform=False, no_transform=False, subsample=1, dataset_type="imagefolder")
    o.pass_over("how fairseq reads", "task.(_name|rebuild_batches|precompute_mask_config|seed|key)")
    o.off(
        "model.",
        w2v_block=False,
        alt_block=False,
        alt_block2=False,
        alt_attention=False,
        layer_norm_first=False,
        no_decoder_embed=False,
        no_decoder_pos_embed=False,
        mask_noise_std=0,
        single_qkv=False,
        use_rel_pos_bias=False,
        no_cls=False,
    )
    o.pass_over("of the other blocks", "model.(fused_ln|end_of_block_targets)")
    assert o("model.norm_pix_loss") and o("model._name") == "mae"

    return {
        **expect_optimizer(o),
        **expect_batches(o, "image"),
        **expect_mae_pictures(),
        "task.config.image.size": o("task.input_size"),
        "criterion.name": "mae",
        "criterion.config.masking.config.ratio": o("model.mask_ratio"),
        "criterion.config.decoder_dim": o("model.decoder_embed_dim"),
        "criterion.config.decoder_depth": o("model.decoder_depth"),
        "criterion.config.decoder_num_heads": o("model.decoder_num_heads"),
        "model.image.image_size": o("model.input_size"),
        "model.image.num_channels": o("model.in_chans"),
        "model.image.patch_size": o("model.patch_size"),
        "model.dim": o("model.embed_dim"),
        "model.depth": o("model.depth"),
        "model.num_heads": o("model.num_heads"),
        "model.mlp_ratio": o("model.mlp_ratio"),
        "model.norm_eps": o("model.norm_eps"),
        "model.drop_path": [0.0, o("model.drop_path_rate")],
        "model.dropout": o("model.block_dropout"),
        "model.attention_dropout": o("model.attention_dropout"),
        "model.activation_dropout": o("model.activation_dropout"),
        "model.norm_first": True,
        "model.mae_init": True,
        "model.image.extra_tokens_std": 0.02,
        # Its groups spare one-dimensional parameters and biases.
        "optimizer.config.decay_tokens": ["extra_tokens", "mask_token"],
        "model.image.prenet_depth": 0,
        "model.image.num_extra_tokens": 1,
    }


def expect_wav2vec2(o: Original) -> Expected:
    """wav2vec 2.0's pre-training; the encoder is data2vec 2.0's, so only what both have is compared."""
    o.off(
        "model.",
        quantize_input=False,
        same_quantizer=False,
        target_glu=False,
        negatives_from_everywhere=False,
        cross_sample_negatives=0,
        codebook_negatives=0,
        quantizer_depth=1,
        latent_dim=0,
    )
    o.pass_over("of deeper quantisers", "model.quantizer_factor")
    o.pass_over("crops are shorter", "model.max_positions")
    assert o("model.quantize_targets") and o("criterion.infonce") and o("criterion._name") == "wav2vec"
    assert o("model.require_same_masks")  # all rows mask as many frames as the one with the fewest: about 45 %
    assert o("model.dropout_input") == o.values["model.dropout_features"]  # one setting here
    encoder = expect_wav2vec_encoder(o)
    highest, lowest, decay = o("model.latent_temp")
    diversity, penalty = o("criterion.loss_weights")
    own = "criterion.config."
    shared = {"depth", "dim", "num_heads", "dropout", "attention_dropout", "activation_dropout", "layer_drop"}

    return {
        **expect_optimizer(o),
        **expect_batches(o, "audio"),
        **expect_crops(o),
        **expect_spans(o),
        "criterion.name": "wav2vec2",
        f"{own}masking.config.ratio": 0.45,
        **{key: value for key, value in encoder.items() if key.removeprefix("model.") in shared},
        **{key: encoder[key] for key in ("model.audio.conv_norm", "model.audio.conv_layers", "model.audio.local_grad_scale")},
        POSITIONS: None,
        f"{own}num_codebooks": o("model.latent_groups"),
        f"{own}num_entries": o("model.latent_vars"),
        f"{own}quantized_dim": o.values["model.final_dim"],
        f"{own}final_dim": o("model.final_dim"),
        f"{own}max_temperature": highest,
        f"{own}min_temperature": lowest,
        f"{own}temperature_decay": decay,
        f"{own}num_distractors": o("model.num_negatives"),
        f"{own}logit_temperature": o("model.logit_temp"),
        f"{own}diversity_weight": diversity,
        f"{own}feature_penalty": penalty,
        f"{own}feature_dropout": o("model.dropout_features"),
    }
