"""Translation of the originals of fine-tuning into our keys."""

from __future__ import annotations

from original_settings import (
    EPOCHS,
    IMAGENET,
    RECIPES,
    Expected,
    Original,
    expect_audio,
    expect_batches,
    expect_optimizer,
)
from pretraining_originals import (
    IMAGES_OF_IMAGENET,
    colours,
)


def expect_fine_tuned_speech(o: Original) -> Expected:
    """CTC on Librispeech, and AudioSet's tags: both fine-tune through the same wrapper of the encoder."""
    o.off(
        "model.",
        mask_selection="static",
        mask_other=0,
        no_mask_overlap=False,
        mask_dropout=0.0,
        mask_channel_selection="static",
        mask_channel_other=0,
        no_mask_channel_overlap=False,
        mask_channel_before=False,
        dropout_input=0.0,
        final_dropout=0.0,
        no_pretrained_weights=False,
    )
    o.pass_over("windows may touch", "model.(mask_min_space|mask_channel_min_space)")
    o.pass_over(
        "how fairseq loads and shards",
        "model.(_name|normalize|.*_args|offload_activations|min_params_to_wrap|ddp_backend|"
        "checkpoint_activations|adp_.*|layer_type|freeze_regex|load_ema)",
        "dataset.valid_subset",
        "checkpoint.maximize.*",
    )
    assert o("model.apply_mask") and o("model.feature_grad_mult") == 0.0
    o.off("task.", max_sample_size=None, min_sample_size=None)
    o.pass_over("masks in proportion to the length of each recording", "model.require_same_masks")
    own = "criterion.config."
    metric = {"wer": "wer", "mAP": "mean_average_precision"}[o("checkpoint.best_checkpoint_metric")]

    return {
        **expect_optimizer(o),
        **expect_batches(o, "audio"),
        **expect_audio(o),
        f"{own}freeze_frontend": True,
        f"{own}freeze_updates": o("model.freeze_finetune_updates"),
        f"{own}masking.probability": o("model.mask_prob"),
        f"{own}masking.length": o("model.mask_length"),
        f"{own}masking.channel_probability": o("model.mask_channel_prob"),
        f"{own}masking.channel_length": o("model.mask_channel_length"),
        "model.dropout": o("model.dropout"),
        "model.attention_dropout": o("model.attention_dropout"),
        "model.activation_dropout": o("model.activation_dropout"),
        "model.layer_drop": o("model.layerdrop"),
        "regime.score_metric": metric,
    }


def expect_ctc(o: Original) -> Expected:
    o.off("model.", drop_path=0, zero_mask=False, layer_decay=1)
    o.pass_over("ALiBi of the checkpoint", "model.update_alibi")
    o.off("criterion.", post_process="letter", wer_kenlm_model=None)
    o.pass_over("of decoding with a language model; rows with infinite loss are refused at the start", "criterion..*")

    return {"task.name": "speech_recognition", "criterion.name": "ctc", **expect_fine_tuned_speech(o)}


def expect_audioset(o: Original) -> Expected:
    o.off(
        "model.",
        eval_prediction_mode=None,
        conv_kernel=-1,
        conv_stride=1,
        two_convs=False,
        extreme_factor=1.0,
        conv_feature_layers=None,
        mixup_prob=1.0,
        gain_mode="none",
    )
    o.pass_over("one share for a recording", "model.same_mixup")
    o.pass_over("of the trainer", "criterion..*", "criterion._name")
    assert o("model.label_mixup")

    return {
        "task.name": "audio_classification",
        "criterion.name": "audio_tagging",
        **expect_fine_tuned_speech(o),
        "criterion.config.pooling": {"lin_softmax": "linear_softmax"}[o("model.prediction_mode")],
        "criterion.config.mixup": o("model.source_mixup"),
    }


def expect_imagenet(o: Original) -> Expected:
    """Fine-tuning of data2vec 2.0 on ImageNet."""
    o.off("model.", no_pretrained_weights=False, linear_classifier=False, remove_alibi=False, norm_eps=None, prediction_mode=None)
    o.pass_over(
        "how fairseq reads",
        "task.(_name|rebuild_batches)",
        "model.(_name|pretrained_model_args)",
        "criterion..*",
        "dataset.valid_subset",
        "checkpoint.maximize.*",
    )
    o.pass_over("what it would exclude is excluded by decay_all", "model.no_decay_blocks")
    assert o("checkpoint.best_checkpoint_metric") == "accuracy" and o("model.use_fc_norm")
    assert (o("model.mixup_switch_prob"), o("model.mixup_mode")) == (0.5, "batch")
    o.pass_over("the data say", "model.num_classes")
    # Over as many values as there are shared blocks; those of a prenet are the first of them once more.
    size = o.name.removeprefix("image/finetune_imagenet_").replace("huge", "huge14")
    pretraining = RECIPES[f"image/pretrain_{size}"]["values"]["model"]
    depth, prenet = pretraining["depth"], pretraining["modalities"]["image"]["prenet_depth"]
    rates = [o("model.drop_path_rate") * i / (depth - 1) for i in range(depth)]

    return {
        **expect_optimizer(o),
        **expect_batches(o, "image"),
        "task.config.image.size": o("task.input_size"),
        "model.family": "data2vec",
        "task.config.image.crop_scale": [0.08, 1.0],
        "task.config.image.flip": 0.5,
        "task.config.erasing": 0.25,
        "task.config.image.mean": IMAGENET[0],
        "task.config.image.std": IMAGENET[1],
        "task.config.rand_augment": {"num_operations": 2, "magnitude": 9.0, "deviation": 0.5, "probability": 0.5},
        "task.config.mixing": {"mixup": o("model.mixup"), "cutmix": o("model.cutmix"), "probability": o("model.mixup_prob")},
        "criterion.config.label_smoothing": o("model.label_smoothing"),
        "optimizer.config.layer_decay": o("model.layer_decay"),
        "criterion.config.pooling": "mean",
        "criterion.config.norm": True,
        "regime.score_metric": "accuracy",
        "model.drop_path": [rates[prenet], rates[-1]],
        "model.image.prenet_drop_path": [rates[0], rates[prenet - 1]] if prenet else [0.0, 0.0],
        "model.dropout": o("model.encoder_dropout"),
        "model.post_mlp_dropout": o("model.post_mlp_drop"),
        "model.attention_dropout": o("model.attention_dropout"),
        "model.activation_dropout": o("model.activation_dropout"),
        "model.input_dropout": o("model.dropout_input"),
        "model.layer_drop": o("model.layerdrop"),
        "model.image.prenet_layer_drop": o("model.prenet_layerdrop"),
        "model.image.prenet_dropout": o("model.prenet_dropout"),
    }


def expect_glue(o: Original) -> Expected:
    """Fine-tuning of data2vec 2.0 on one of GLUE's tasks."""
    o.off(
        "model.",
        pooler_dropout=0.0,
        pooler_activation_fn="tanh",
        quant_noise_pq=0,
        spectral_norm_classification_head=False,
        no_pretrained_weights=False,
    )
    o.pass_over(
        "how fairseq reads",
        "task.(_name|d2v2_multi|init_token|separator_token)",
        "checkpoint.maximize.*",
        "dataset.valid_subset",
        "model.(_name|pretrained_model_args|quant_noise.*)",
        "criterion..*",
    )
    scores = {"mcc": "matthews", "acc_and_f1": "accuracy_and_f1"}
    metric = o("checkpoint.best_checkpoint_metric")
    o.pass_over("the data say", "task.num_classes")
    assert o("optimization.update_freq") == [1]

    return {
        **expect_optimizer(o),
        "task.config.batch_size": o("dataset.batch_size") * o("distributed_training.distributed_world_size"),
        "task.config.max_length": o("task.max_positions"),
        "regime.score_metric": scores.get(metric, metric),
        "task.config.max_num_tokens": o("dataset.max_tokens"),
        EPOCHS: o("optimization.max_epoch"),
    }


def expect_run_class_finetuning(o: Original) -> Expected:
    """Fine-tuning of BEiT's code, from its command line."""
    batch = o("batch_size") * o("world_size") * o("update_freq")
    per_epoch, epochs = IMAGES_OF_IMAGENET // batch, o("epochs")
    assert o("aa") == "rand-m9-mstd0.5-inc1" and o("train_interpolation") == "bicubic" and o("remode") == "pixel"
    assert (o("mixup_mode"), o("mixup_switch_prob"), o("recount")) == ("batch", 0.5, 1) and o("target_layer") == -1
    o.off(
        "",
        abs_pos_emb=False,
        crop_pct=None,
        cutmix_minmax=None,
        drop=0.0,
        layernorm_before_combine=False,
        learn_layer_weights=False,
        linear_classifier=False,
        model_ema=False,
        num_mask_patches=0,
        resplit=False,
        weight_decay_end=None,
        warmup_steps=-1,
        reinit_final_norm=False,
        remove_final_norm=False,
        disable_weight_decay_on_rel_pos_bias=False,
        rel_pos_bias=True,
        opt="adamw",
        clip_grad=None,
        use_mean_pooling=None,
    )
    o.pass_over("replaced by RandAugment", "color_jitter")
    o.pass_over("the weights hold it", "layer_scale_init_value")
    o.pass_over("the schedule is made without it, from 0", "warmup_lr")
    o.pass_over("off with it", "(min|max)_mask_patches_per_block|model_ema_.*|momentum|data_set.*")
    warmup = o("warmup_epochs")

    return {
        "model.family": "data2vec1",
        "model.arch": "vision_large" if "large" in o("model") else "vision_base",
        "task.config.batch_size": batch,
        "task.config.image.size": o("input_size"),
        "regime.num_steps": per_epoch * epochs,
        **dict(zip(("task.config.image.mean", "task.config.image.std"), colours(o), strict=True)),
        "task.config.image.crop_scale": [0.08, 1.0],
        "task.config.image.flip": 0.5,
        "task.config.erasing": o("reprob"),
        "task.config.rand_augment": {"num_operations": 2, "magnitude": 9.0, "deviation": 0.5, "probability": 0.5},
        "task.config.mixing": {"mixup": o("mixup"), "cutmix": o("cutmix"), "probability": o("mixup_prob")},
        "criterion.config.label_smoothing": o("smoothing"),
        "criterion.config.init_scale": o("init_scale"),
        "model.drop_path": o("drop_path"),
        "model.attention_dropout": o("attn_drop_rate"),
        "optimizer.config.lr": o("lr"),
        "optimizer.config.betas": [0.9, 0.999] if o("opt_betas") is None else None,
        "optimizer.config.eps": o("opt_eps"),
        "optimizer.config.weight_decay": o("weight_decay"),
        "optimizer.config.layer_decay": o("layer_decay"),
        "trainer.max_grad_norm": None,
        "lr_scheduler.config.num_warmup_steps": per_epoch * warmup,
        "lr_scheduler.config.start_lr": 0.0,
        "lr_scheduler.config.final_lr": o("min_lr"),
    }
