"""Learning rates of layers, and the table that shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig, ImageConfig
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontend_config import DecoderConfig, ImageFrontendConfig
from d2v_plugin.training.layer_groups import find_layers, format_layers
from d2v_plugin.training.optimizer import Data2VecAdamWConfig, build_adamw


def make_model() -> Any:
    decoder = DecoderConfig(dim=16, num_groups=4, num_layers=1)
    image = ImageFrontendConfig(image_size=32, patch_size=8, num_extra_tokens=1, prenet_depth=1, decoder=decoder)

    return create_model(Data2VecConfig(image=image, dim=16, depth=2, num_heads=2))


def make_data2vec1() -> Any:
    return create_data2vec1(
        Data2Vec1ModelConfig(image=ImageConfig(image_size=32, patch_size=8), dim=16, depth=3, num_heads=2, ffn_dim=32)
    )


MODELS: list[Callable[[], Any]] = [make_model, make_data2vec1]


def fine_tune(model: Any, **settings: Any) -> Any:
    criterion = ClassificationCriterion(ClassificationConfig(**settings))
    criterion.set_labels(LabelSet(("a", "b", "c")))
    criterion.build(model)
    model.criterion = criterion
    model.requires_grad_(True)

    return model


def rate_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}

    return {name: rates[id(p)] for name, p in model.named_parameters() if id(p) in rates}


@pytest.mark.parametrize("make", MODELS)
def test_every_parameter_is_in_one_layer(make: Callable[[], Any]) -> None:
    model = fine_tune(make())

    names = [name for layer in find_layers(model) for name in layer.parameters]

    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert [layer.name for layer in find_layers(model) if layer.name not in ("top", "decoder")] == [
        "frontend", "block 0", "block 1", "block 2", "head",
    ]  # fmt: skip


def test_rates_fall_from_the_head_to_the_frontend_as_in_beit() -> None:
    model = fine_tune(make_model())
    rates = rate_of(model, build_adamw(model, Data2VecAdamWConfig(lr=1.0, layer_decay=0.5)))

    assert rates["criterion.head.proj.weight"] == rates["criterion.head.proj.bias"] == 1.0
    assert rates["blocks.1.attn.qkv.weight"] == 0.5 and rates["blocks.0.norm1.bias"] == 0.25
    # The prenet lies below the shared blocks, the frontend below the prenet.
    assert rates["modality_encoders.IMAGE.context_encoder.blocks.0.mlp.fc1.weight"] == 0.125
    assert rates["modality_encoders.IMAGE.local_encoder.proj.weight"] == 0.0625
    assert rates["modality_encoders.IMAGE.extra_tokens"] == 0.0625


def test_shared_relative_positions_and_the_final_norm_belong_to_the_top() -> None:
    model = fine_tune(make_data2vec1())
    rates = rate_of(model, build_adamw(model, Data2VecAdamWConfig(lr=1.0, layer_decay=0.5)))

    assert rates["encoder.rel_pos_bias.relative_position_bias_table"] == rates["encoder.norm.weight"] == 1.0
    assert rates["encoder.blocks.2.attn.q_bias"] == 0.5 and rates["encoder.blocks.0.mlp.0.weight"] == 0.125
    assert rates["patch_embed.conv.weight"] == rates["cls_emb"] == 0.0625


def test_the_frontend_can_keep_the_full_rate_as_in_data2vec_2() -> None:
    model = fine_tune(make_model())
    rates = rate_of(model, build_adamw(model, Data2VecAdamWConfig(lr=1.0, layer_decay=0.5, layer_decay_frontend=False)))

    assert rates["modality_encoders.IMAGE.local_encoder.proj.weight"] == 1.0
    assert rates["modality_encoders.IMAGE.context_encoder.blocks.0.mlp.fc1.weight"] == 0.125


def test_the_head_has_its_own_rate_and_decay_and_the_rule_of_no_decay_stays() -> None:
    model = fine_tune(make_model())
    config = Data2VecAdamWConfig(lr=1.0, weight_decay=0.1, head_lr=7.0, head_weight_decay=0.3)

    groups = build_adamw(model, config).param_groups

    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    assert decays[id(parameters["criterion.head.proj.weight"])] == 0.3
    assert decays[id(parameters["criterion.head.proj.bias"])] == decays[id(parameters["blocks.0.norm1.weight"])] == 0.0
    assert decays[id(parameters["blocks.0.mlp.fc1.weight"])] == 0.1
    rates = rate_of(model, build_adamw(model, config))
    assert {rate for name, rate in rates.items() if name.startswith("criterion.")} == {7.0}
    assert {rate for name, rate in rates.items() if not name.startswith("criterion.")} == {1.0}


def test_what_is_frozen_or_unused_is_not_in_the_optimizer() -> None:
    model = fine_tune(make_model(), freeze_frontend=True)
    rates = rate_of(model, build_adamw(model, Data2VecAdamWConfig()))

    left_out = {name for name, _ in model.named_parameters()} - set(rates)
    assert {name.split(".")[2] for name in left_out} == {"local_encoder", "fixed_positional_encoder", "decoder"}


def test_the_table_shows_layers_rates_decay_and_what_is_frozen() -> None:
    model = fine_tune(make_model(), freeze_frontend=True, freeze_updates=100)
    optimizer = build_adamw(model, Data2VecAdamWConfig(lr=1e-3, weight_decay=0.05, layer_decay=0.5, head_lr=0.1))

    lines = format_layers(model, optimizer).splitlines()

    cells = [line.split("  ") for line in lines]
    rows = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in cells}
    assert rows["trained"] == ["parameters", "peak lr", "weight decay"]
    assert rows["block 2"] == ["3,280", "0.0005", "0.05 on 3,072"]
    assert rows["head"] == ["83", "0.1", "0.05 on 48"]
    assert rows["frontend, decoder"][1:] == ["frozen"]
    assert lines[-1] == "Updates 1 to 100 train the head alone."
    counts = [int(row[0].replace(",", "")) for name, row in rows.items() if name != "trained" and row]
    assert sum(counts) == sum(parameter.numel() for parameter in model.parameters())


def test_layers_that_are_treated_alike_share_a_row() -> None:
    model = fine_tune(make_model())

    table = format_layers(model, build_adamw(model, Data2VecAdamWConfig(lr=1e-3, weight_decay=0.05)))

    assert table.splitlines()[1].startswith("frontend, block 0 to 2, head  ")


def test_wrappers_do_not_change_the_rates() -> None:
    model = fine_tune(make_model())
    config = Data2VecAdamWConfig(lr=1.0, layer_decay=0.5)
    plain = rate_of(model, build_adamw(model, config))

    wrapped = rate_of(model, build_adamw(nn.ModuleDict({"module": model}), config))

    assert plain == wrapped


def test_fairseq_counts_the_updates_of_what_was_frozen_from_its_first_one() -> None:
    model = fine_tune(make_model(), freeze_updates=1)
    optimizer = build_adamw(model, Data2VecAdamWConfig(fairseq_eps=True))

    for parameter in model.criterion.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    assert sorted({group["num_updates"] for group in optimizer.param_groups}) == [0, 1]
