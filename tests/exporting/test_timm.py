"""Images leave for timm: 1.0 as its BEiT, 2.0 by a module that the folder carries; features and logits are equal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_models import change, read_trained

import d2v_plugin.exporting.packages
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.exporting.timm import export_timm

CLS = {"pooling": "cls", "norm": False}
PER_LAYER: dict[str, Any] = {"final_norm": False, "relative_positions": "per_layer"}
NOTHING: dict[str, Any] = {"final_norm": False, "relative_positions": "none", "layer_scale": None}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("data2vec", {}),
        ("data2vec", CLS),
        ("data2vec", {"pooling": "cls"}),
        ("data2vec", {"norm": False}),
        ("data2vec1", CLS),
        ("data2vec1", {"change": change("image", **PER_LAYER)}),
        ("data2vec1", {"change": change("image", **NOTHING)}),
    ],
)
def test_features_and_logits_are_equal(family: str, settings: Any, tmp_path: Path) -> None:
    arch = "image_tiny" if family == "data2vec" else "vision_tiny"

    differences = export_timm(read_trained(tmp_path / "trained", family, arch, "classification", **settings), tmp_path / "out")

    assert list(differences) == ["features", "logits"] and max(differences.values()) <= 1e-5


@pytest.mark.parametrize(
    ("family", "arch", "change"),
    [
        ("data2vec", "image_tiny", lambda config: config),
        ("data2vec1", "vision_tiny", lambda config: replace(config, norm_eps=1e-12)),
        ("data2vec1", "vision_tiny", change("image", final_norm=False)),
    ],
)
def test_an_encoder_alone_has_equal_features(family: str, arch: str, change: Any, tmp_path: Path) -> None:
    differences = export_timm(read_trained(tmp_path / "trained", family, arch, change=change), tmp_path / "out")

    assert list(differences) == ["features"] and differences["features"] <= 1e-5


@torch.no_grad()
def test_the_module_needs_neither_this_package_nor_fairseq2(tmp_path: Path) -> None:
    exportable = read_trained(tmp_path / "trained", "data2vec", "image_tiny", "classification")
    export_timm(exportable, tmp_path / "out")
    images = torch.randn(5, 3, 16, 16)
    torch.save(images, tmp_path / "images.pt")
    page = Path(__file__).parents[2].joinpath("recipes", "exporting.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- code: timm -->\n```python\n(.*?)```", page, re.DOTALL)
    shown = shown.replace("out/digits_timm", str(tmp_path / "out"))
    (tmp_path / "use.py").write_text(
        "import sys, torch\nsys.modules['d2v_plugin'] = sys.modules['fairseq2'] = None\n"
        f"torch.set_grad_enabled(False)\nimages = torch.load('images.pt')\n{shown}\n"
        "torch.save([tokens, logits], 'found.pt')\nassert reading['input_size'] == [3, 16, 16]\n"
        "fresh = create_model(num_classes=7, drop_path_rate=0.1)\nassert fresh(images).shape == (5, 7)\n"
    )

    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env=environment, check=True)

    features, logits = torch.load(tmp_path / "found.pt")
    ours = exportable.model.extract_features(images)
    assert ours.extra_tokens is not None and exportable.criterion is not None
    torch.testing.assert_close(features, torch.cat([ours.extra_tokens, ours.x], dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, exportable.criterion.apply_head(ours), atol=1e-5, rtol=1e-5)


def test_the_card_of_data2vec_1_works_as_it_stands(tmp_path: Path) -> None:
    image = {"size": 16, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "eval_resize": 1.25}
    exportable = read_trained(
        tmp_path / "trained",
        "data2vec1",
        "vision_tiny",
        "classification",
        task={"image": image},
        change=change("image", **PER_LAYER),
    )
    export_timm(exportable, tmp_path / "out")

    card = (tmp_path / "out" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"images": torch.zeros(2, 3, 16, 16)}
    exec(code[1].replace("FOLDER", str(tmp_path / "out")), names)
    assert names["features"].shape == (2, 17, 16)
    inputs = timm.data.resolve_model_data_config(names["model"])
    assert list(inputs["mean"]) == [0.1, 0.2, 0.3] and list(inputs["std"]) == [0.4, 0.5, 0.6] and inputs["crop_pct"] == 0.8
    assert list(inputs["input_size"]) == [3, 16, 16]
    labels = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["label_names"]
    assert labels == ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            ("data2vec", "image_tiny", "classification"),
            {"hidden": True},
            "timm has no place for the head of .*: `hidden` is true",
        ),
        (("data2vec", "image_tiny", "classification"), {"norm_eps": 1e-5}, "`norm_eps` is 1e-05, that of the model 1e-06"),
        (("data2vec1", "vision_tiny", "classification"), {}, "BEiT has either the norm of the mean, or the CLS token"),
        (("data2vec", "audio_tiny"), {}, "timm is for images, but .* is a model of audio"),
        (("data2vec", "image_tiny"), {"change": lambda config: replace(config, norm_first=True)}, "`norm_first` is true"),
        (("data2vec", "image_tiny"), {"change": change("image", num_extra_tokens=2)}, "`image.num_extra_tokens` is 2, not 1"),
    ],
)
def test_what_timm_does_not_have_is_refused_by_name(model: Any, settings: Any, message: str, tmp_path: Path) -> None:
    exportable = read_trained(tmp_path / "trained", *model, **settings)

    with pytest.raises(CheckpointError, match=message) as caught:
        export_timm(exportable, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_another_architecture_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exportable = read_trained(tmp_path / "trained", "data2vec", "image_tiny")
    exportable.model.register_parameter("register_tokens", torch.nn.Parameter(torch.zeros(1)))

    with pytest.raises(CheckpointError, match=r"data2vec2_vit is another architecture than .*register_tokens") as caught:
        export_timm(exportable, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_without_timm_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exportable = read_trained(tmp_path / "trained", "data2vec1", "vision_tiny")
    monkeypatch.setattr(d2v_plugin.exporting.packages, "find_spec", lambda name: None)

    with pytest.raises(CheckpointError, match=r"The format `timm` needs timm: `pip install timm`"):
        export_timm(exportable, tmp_path / "out")
