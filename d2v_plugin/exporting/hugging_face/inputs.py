"""How inputs are read, as Hugging Face writes it: feature extractors of speech, processors of images, tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from d2v_plugin.core.batch import Modality, as_grid
from d2v_plugin.core.log import log
from d2v_plugin.criteria.supervised.ctc import CtcCriterion
from d2v_plugin.data.audio import AudioReadingConfig
from d2v_plugin.data.image import ImageReadingConfig
from d2v_plugin.data.text import SENTENCEPIECE_FILE
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.exporting.hugging_face.tokenizers import write_symbols, write_tokenizer
from d2v_plugin.tasks.multimodal import MultimodalPretrainingTask

PREPROCESSOR_FILE: Final = "preprocessor_config.json"
_BICUBIC: Final = 3


def write_inputs(exportable: Exportable, folder: Path, *, speech: Mapping[str, Any]) -> None:
    """Write how the inputs of a model are read. Of a model of several modalities each has a folder of its own in ``folder``.

    :param speech: settings of the feature extractor beyond those that every one has, such as its class.
    :raises CheckpointError: the vocabulary has something that Hugging Face's tokenizers lack.
    """
    modalities = list(exportable.model.config.frontends)
    for modality in modalities:
        place = folder if len(modalities) == 1 else folder / modality.value
        if modality is Modality.TEXT:
            _write_text(exportable, place)
            continue
        place.mkdir(exist_ok=True)
        reading = find_reading(exportable, modality)
        content = {**_describe_speech(reading), **speech} if modality is Modality.AUDIO else _describe_images(reading)
        write_json(place / PREPROCESSOR_FILE, content)

    if isinstance(exportable.criterion, CtcCriterion) and exportable.labels is not None:
        pieces = [file for file in exportable.files if file.name == SENTENCEPIECE_FILE]
        write_symbols(exportable.labels.names, pieces[0] if pieces else None, folder)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a readable file."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def find_reading(exportable: Exportable, modality: Modality) -> Any:
    """The settings by which the run read a modality: ``audio`` or ``image`` of its task."""
    task = exportable.task
    tasks = task.tasks if isinstance(task, MultimodalPretrainingTask) else [] if task is None else [task]
    for part in tasks:
        if part.modality is modality:
            return getattr(part.config, modality.value)

    log.warning("Nothing says how {} is read for {}; written are the defaults.", modality.value, exportable.path)
    if modality is Modality.AUDIO:
        return AudioReadingConfig()
    return ImageReadingConfig(size=exportable.model.config.frontends[modality].image_size)


def _describe_speech(reading: AudioReadingConfig) -> dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": reading.sample_rate,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": reading.normalize,
        "return_attention_mask": True,
    }


def _describe_images(reading: ImageReadingConfig) -> dict[str, Any]:
    size, _ = as_grid(reading.size)  # squares alone are exported

    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": max(size, round(size * reading.eval_resize))},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(reading.mean),
        "image_std": list(reading.std),
    }


def _write_text(exportable: Exportable, folder: Path) -> None:
    if not exportable.files:
        log.warning("No tokenizer is written, because the vocabulary of {} is not there.", exportable.path)
        return
    folder.mkdir(exist_ok=True)
    max_length = exportable.model.config.frontends[Modality.TEXT].max_positions
    write_tokenizer(exportable.files[0].parent, folder, max_length=max_length)
