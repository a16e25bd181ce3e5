"""timm: data2vec 1.0 is its BEiT; data2vec 2.0 is a module of its layers, which the folder carries."""

from __future__ import annotations

import json
import runpy
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.exporting.comparison import Differences, compute_outputs, draw_batch, largest_difference
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.exporting.metadata import describe_use
from d2v_plugin.exporting.packages import need
from d2v_plugin.exporting.timm_models import VIT, TimmModel, describe_beit, describe_vit
from d2v_plugin.models.data2vec1.base import Data2Vec1Model

MODULE: Final = Path(__file__).with_name(f"{VIT}.py")
_TIMM_EPS: Final = 1e-6


def export_timm(exportable: Exportable, folder: Path) -> Differences:
    """Write weights, what makes a model of them, and how pictures are read; load it as others do and compare it.

    :raises CheckpointError: timm is missing, or the model or its head is none that its layers make.
    """
    need("timm", "timm")
    model = exportable.model
    if exportable.modality is not Modality.IMAGE:
        raise CheckpointError(f"timm is for images, but {exportable.path} is a model of {exportable.modality.value}.")
    content = describe_beit(exportable) if isinstance(model, Data2Vec1Model) else describe_vit(exportable)

    folder.mkdir()
    config = {
        "architecture": content.architecture,
        "model_args": content.arguments,
        "norm_eps": content.norm_eps,
        "pretrained_cfg": _describe_inputs(exportable, content.arguments["num_classes"]),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file({name: t.contiguous() for name, t in content.weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    if content.architecture == VIT:
        shutil.copyfile(MODULE, folder / MODULE.name)
    (folder / "README.md").write_text(_write_card(content), encoding="utf-8")

    try:
        loaded = _load(folder, content)
    except RuntimeError as ex:
        reason = " ".join(str(ex).split())
        raise CheckpointError(f"timm's {content.architecture} is another architecture than {exportable.path}: {reason}") from ex

    return _compare(exportable, loaded)


def _describe_inputs(exportable: Exportable, num_classes: int) -> dict[str, Any]:
    """What ``timm.data`` reads; of an encoder of which nothing is known ImageNet's mean and deviation."""
    use = describe_use(exportable)
    config: dict[str, Any] = {
        "input_size": [exportable.model.config.frontends[Modality.IMAGE].num_channels, use["image_size"], use["image_size"]],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1 / use.get("eval_resize", 256 / 224),
        "crop_mode": "center",
        "mean": use.get("mean", [0.485, 0.456, 0.406]),
        "std": use.get("std", [0.229, 0.224, 0.225]),
        "num_classes": num_classes,
    }
    if use.get("labels"):
        config["label_names"] = use["labels"]

    return config


def _load(folder: Path, content: TimmModel) -> nn.Module:
    """Load as the card says."""
    if content.architecture == VIT:
        loaded: nn.Module = runpy.run_path(str(folder / MODULE.name))["create_model"](folder)
        return loaded

    import timm

    norm: dict[str, Any] = {} if content.norm_eps == _TIMM_EPS else {"norm_layer": partial(nn.LayerNorm, eps=content.norm_eps)}
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **norm).eval()


def _write_card(content: TimmModel) -> str:
    if content.architecture == VIT:
        load = f"from {VIT} import create_model\n\nmodel = create_model()"
        what = f"No model of timm has blocks like these, so `{MODULE.name}` makes one of timm's layers."
    else:
        norm = "" if content.norm_eps == _TIMM_EPS else f", norm_layer=partial(nn.LayerNorm, eps={content.norm_eps})"
        imports = "" if not norm else "from functools import partial\n\nfrom torch import nn\n"
        load = f'{imports}import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True{norm})'
        what = f"It is timm's `{content.architecture}` with the arguments in `config.json`; FOLDER is this folder."
    head = "" if content.arguments["num_classes"] else " Beside these, nothing was trained: there is no head."

    return (
        f"# data2vec of images, for timm\n\n{what}\n\n```python\n{load}\n"
        "features = model.forward_features(images)  # (N, 1 + S, D), the CLS token first\n```\n\n"
        f"`timm.data.resolve_model_data_config(model)` says how pictures are read.{head}\n"
    )


@torch.no_grad()
def _compare(exportable: Exportable, loaded: nn.Module) -> Differences:
    batch = draw_batch(exportable.model, Modality.IMAGE)
    expected = compute_outputs(exportable, batch)
    features = exportable.model.extract_features(batch.inputs, modality=Modality.IMAGE)
    assert features.extra_tokens is not None
    found: Tensor = loaded.forward_features(batch.inputs)  # type: ignore[operator]
    differences = {"features": largest_difference(torch.cat([features.extra_tokens, features.x], dim=1), found)}
    if expected.head is not None:
        differences["logits"] = largest_difference(expected.head, loaded(batch.inputs))

    return differences
