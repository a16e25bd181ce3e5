"""Folders of Hugging Face with models of others, read as models of this package.

Tensors are read as they lie in the files, without the originals' classes: those draw at random what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.weights.convert import eat, image, speech, text
from d2v_plugin.weights.convert.transfer import Foreign
from d2v_plugin.weights.directory import read_weights
from d2v_plugin.weights.torch_file import POINTER, is_pointer, read_torch_file

MODEL_TYPES: Final[Mapping[str, Callable[[Path, Any, Mapping[str, Tensor]], Foreign]]] = {
    "wav2vec2": speech.adopt_hugging_face,
    "hubert": speech.adopt_hugging_face,
    "roberta": text.adopt_hugging_face,
    "xlm-roberta": text.adopt_hugging_face,
    "bert": text.adopt_hugging_face,
    "vit": image.adopt_hugging_face,
    "vit_mae": image.adopt_hugging_face,
    "beit": image.adopt_hugging_face,
    "eat": eat.adopt_hugging_face,
}
"""By ``model_type`` of a folder's ``config.json``."""

_PREFIXES: Final = ("wav2vec2.", "hubert.", "roberta.", "bert.", "vit.", "beit.")


def adopt(folder: Path) -> Foreign:
    """Read a folder of ``save_pretrained`` with a model of one of the types of :data:`MODEL_TYPES`; heads on top are left out.

    :raises CheckpointError: it cannot be read, or holds something else than its configuration says; names all.
    """
    from transformers import AutoConfig

    try:
        # EAT's class comes with the folder, and is not run: its settings all stand in the file.
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        is_eat = settings.get("model_type") == "eat"
        source: Any = SimpleNamespace(**settings) if is_eat else AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as ex:  # transformers lets through whatever the file provokes
        reason = " ".join(f"{type(ex).__name__}: {ex}".split())
        raise CheckpointError(f"{folder} is not a folder of Hugging Face's `save_pretrained`: {reason}") from ex
    weights = _read_folder(folder)
    prefix = next((prefix for prefix in _PREFIXES if any(key.startswith(prefix) for key in weights)), "")
    weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}

    return MODEL_TYPES[source.model_type](folder, source, weights)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, of one file or several."""
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise CheckpointError(f"{folder} has neither model.safetensors nor pytorch_model.bin.")
    weights: dict[str, Tensor] = {}
    for file in files:
        if is_pointer(file):
            raise CheckpointError(f"{file}: {POINTER}")
        content = read_weights(file) if file.suffix == ".safetensors" else read_torch_file(file)
        if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
            raise CheckpointError(f"{file} holds something else than tensors.")
        weights |= content

    return weights
