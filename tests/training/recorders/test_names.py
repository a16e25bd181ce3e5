"""Metrics have one name in TensorBoard and its kind, and one in words."""

from __future__ import annotations

import pytest
import torch

from d2v_plugin.training.recorders.names import Name, flatten, format_value, name_metric
from d2v_plugin.training.recorders.rates import name_rates
from d2v_plugin.verbs.registration import METRICS


@pytest.mark.parametrize(
    ("category", "metric", "tag", "words"),
    [
        ("train", "loss", "train/loss", "loss"),
        ("train", "target_rank", "targets/rank", "rank of targets"),
        ("train", "samples_per_second", "time/samples_per_second", "samples/s"),
        ("train", "lr/block 0 to 2", "optimizer/learning_rate/block_0_to_2", "learning rate of block 0 to 2"),
        ("train", "brightness", "train/brightness", "brightness"),
        ("valid/probe", "probe_knn", "probe/knn", "k-NN probe"),
        ("valid/probe", "probe_linear_layer11", "probe/linear_layers/11", "linear probe, layer 11"),
        ("eval/random_init", "probe_linear", "probe/random_init/linear", "linear probe"),
        ("valid/valid", "wer", "valid/wer", "word error rate"),
        ("valid/dev_other", "loss", "valid/dev_other/loss", "loss"),
        ("valid/probe", "data_time", "time/valid_probe/data", "waited for data"),
        ("eval/test", "f1", "eval/test/f1", "F1"),
    ],
)
def test_a_metric_has_a_group_and_words(category: str, metric: str, tag: str, words: str) -> None:
    assert name_metric(category, metric)[:2] == (tag, words)


def test_all_metrics_of_training_that_are_ours_are_in_the_table() -> None:
    scores = ("accuracy", "top5", "f1", "matthews", "pearson", "spearman", "mean_average", "cer")
    names = [descriptor.name for descriptor in METRICS if not descriptor.name.startswith(scores)]

    assert [name for name in names if name_metric("train", name).tag == f"train/{name}"] == []


def test_the_loss_comes_first_and_tensors_become_numbers() -> None:
    values = {"lr": 0.1, "lr/head": 0.1, "zeta": 1, "regression_loss": torch.tensor(2.0), "loss": 3.0, "by_class": [0.5, 1.0]}
    tags = {name.tag: value for name, value in flatten("train", values)}

    assert list(tags) == [
        *("train/loss", "train/loss_regression", "train/zeta", "train/by_class/0", "train/by_class/1"),
        *("optimizer/learning_rate", "optimizer/learning_rate/head"),
    ]
    assert tags["train/loss_regression"] == 2.0


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("s", 0.0234, "0.0234 s"),
        ("%", 0.8125, "81.25 %"),
        ("n", 12345.0, "12,345"),
        ("", 45.678901, "45.68"),
        ("", 123456.0, "123,456"),
        ("", 0.000031, "3.1e-05"),
        ("B", 3 * 2**30, "3.00 GiB"),
        ("", "text", "text"),
    ],
)
def test_values_keep_four_digits_and_small_ones_are_not_zero(unit: str, value: float | str, text: str) -> None:
    assert format_value(Name("", "", unit), value) == text


def test_a_rate_is_one_number_and_groups_have_names_where_they_differ() -> None:
    same = name_rates({"lr": [0.1, 0.1]}, lambda: ["frontend, block 0", "frontend, block 0"])
    layered = name_rates({"lr": [0.05, 0.05, 0.1], "loss": 1.0}, lambda: ["block 0", "block 0", "head"])

    assert same == {"lr": 0.1}
    assert layered == {"lr": 0.1, "loss": 1.0, "lr/block 0": 0.05, "lr/head": 0.1}
    assert name_rates({"lr": 0.2}, list) == {"lr": 0.2}
