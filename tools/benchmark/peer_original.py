"""Updates of the original, from a checkout of fairseq, beside ours: published settings of the base models, random inputs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from tools.benchmark.peer_side import Setting, Work

VIEWS: Final = {"image": 16, "audio": 8, "text": 8}
FILES: Final = {"image": "images", "audio": "audio", "text": "text"}


def begin(setting: Setting) -> Work:
    modality = setting.row.partition("/")[2]
    if setting.side == "ours":
        from tools.benchmark import update

        wanted = update.Setting(f"{modality}_{'tiny' if setting.tiny else 'base'}", views=VIEWS[modality])
        wanted = replace(wanted, seconds=1.0, tokens=64) if setting.tiny else wanted
        ours, batch = update.Update(wanted), update.draw_batch(wanted)
        return Work(lambda: ours.run(batch))
    assert setting.original is not None

    return begin_theirs(Path(setting.original), modality, setting.tiny)


def begin_theirs(checkout: Path, modality: str, tiny: bool) -> Work:
    sys.path.insert(0, str(checkout))
    import numpy as np

    np.float, np.int = float, int  # type: ignore[attr-defined]  # which it still uses
    import fairseq  # type: ignore[import-not-found]  # noqa: F401
    from examples.data2vec.data.modality import Modality  # type: ignore[import-not-found]
    from examples.data2vec.models.data2vec2 import Data2VecMultiConfig, Data2VecMultiModel  # type: ignore[import-not-found]
    from omegaconf import OmegaConf  # type: ignore[import-not-found]

    settings: Any = OmegaConf.load(checkout / f"examples/data2vec/config/v2/base_{FILES[modality]}_only_task.yaml")
    del settings.model["_name"]
    if tiny:
        settings.model.merge_with({"depth": 3, "embed_dim": 96, "num_heads": 4, "average_top_k_layers": 3})
        settings.model.modalities[modality].decoder.decoder_dim = 96
    merged = OmegaConf.merge(OmegaConf.structured(Data2VecMultiConfig), settings.model)
    # Its fields refer to each other by their places in the configuration of a run.
    config = OmegaConf.create({"model": merged, "common": {"seed": 1}}).model
    kind = Modality[modality.upper()]
    model = Data2VecMultiModel(config, [kind], skip_ema=False, task=Task())
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    inputs = {
        "image": torch.randn(2, 3, 224, 224),
        "audio": torch.randn(2, 16_000 if tiny else 160_000),
        "text": torch.randint(4, 50_000, (2, 64 if tiny else 512)),
    }[modality]
    number = 0

    def run() -> None:
        nonlocal number
        found = model(inputs, mode=kind, id=torch.arange(2), mask=True, padding_mask=None)
        loss = sum(term.float().sum() for term in found["losses"].values())
        (loss / int(found["sample_size"])).backward()
        torch.nn.utils.clip_grad_norm_(trained, 4.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        number += 1
        model.set_num_updates(number)  # the teacher's average

    return Work(run)


class Task:
    """What the original asks of a task."""

    mask_idx = 50_264

    class _Words:
        def __len__(self) -> int:
            return 50_265

        def pad(self) -> int:
            return 1

    source_dictionary = _Words()
