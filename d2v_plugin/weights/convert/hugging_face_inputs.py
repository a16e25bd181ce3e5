"""How a folder of ``save_pretrained`` says that its model's inputs are read: feature extractor, image processor, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tokenizers import Tokenizer

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.data.transcripts import BLANK, WORD_END

if TYPE_CHECKING:
    from transformers import PretrainedConfig

T = TypeVar("T")

_BICUBIC: Final = 3
_SYMBOLS_FILE: Final = "vocab.json"
_SETTINGS_FILES: Final = ("special_tokens_map.json", "tokenizer_config.json")
_VOCABULARY: Final = ("vocab.json", "merges.txt")


@dataclass
class Inputs:
    """How inputs are read, in our terms."""

    task: dict[str, Any] = field(default_factory=dict)
    """Settings of the task."""

    files: list[Path] = field(default_factory=list)
    """The vocabulary of a text model."""

    notes: list[str] = field(default_factory=list)
    """What is not said there, or is done differently here."""


def read_audio_inputs(folder: Path) -> Inputs:
    """Read the feature extractor.

    :raises CheckpointError: it is damaged.
    """
    from transformers import AutoFeatureExtractor

    extractor = _open(folder, AutoFeatureExtractor.from_pretrained, "preprocessor_config.json")
    if extractor is None:
        return Inputs(notes=[f"{folder} has no preprocessor_config.json: recordings are taken to be at 16 kHz, and normalised."])

    return Inputs({"audio": {"sample_rate": extractor.sampling_rate, "normalize": extractor.do_normalize}})


def read_image_inputs(folder: Path, image_size: int) -> Inputs:
    """Read the image processor.

    :raises CheckpointError: it is damaged, or makes pictures of another size than the model's.
    """
    from transformers import AutoImageProcessor

    processor = _open(folder, AutoImageProcessor.from_pretrained, "preprocessor_config.json")
    if processor is None:
        note = f"{folder} has no preprocessor_config.json: mean and deviation of the colours are taken to be ImageNet's."
        return Inputs({"image": {"size": image_size}}, notes=[note])

    size = dict(processor.size)
    whole = size.get("shortest_edge", size.get("height"))
    crop = dict(processor.crop_size) if processor.do_center_crop else size
    final = crop.get("shortest_edge", crop.get("height"))
    if not processor.do_resize or final != image_size or crop.get("width", final) != final or whole is None:
        raise CheckpointError(
            f"{folder}/preprocessor_config.json makes pictures of {crop if processor.do_resize else 'any size'}, but the model "
            f"takes {image_size} x {image_size}."
        )
    # (x · f - m) / s = (x / 255 - m / k) / (s / k), k = 255 · f
    k = 255 * (processor.rescale_factor if processor.do_rescale else 1.0)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    notes = []
    if "shortest_edge" not in size:
        notes.append("Pictures that are not square are squeezed there; here the middle is cut out of them.")
    if int(processor.resample) != _BICUBIC:
        notes.append("Pictures are resized by another method there; here it is bicubic.")
    image = {
        "size": image_size,
        "eval_resize": whole / final,
        "mean": [round(value / k, 9) for value in mean],
        "std": [round(value / k, 9) for value in std],
    }

    return Inputs({"image": image}, notes=notes)


def read_text_inputs(folder: Path, max_length: int, scratch: Path | None) -> Inputs:
    """Find the byte-level BPE.

    :param max_length: in tokens.
    :param scratch: an empty folder, for a vocabulary that is a part of ``tokenizer.json``; None = that is not read.
    :raises CheckpointError: words are treated as ours are not.
    """
    task = {"max_length": max_length}
    settings = folder / "tokenizer_config.json"
    if _read_json(settings).get("add_prefix_space", False):
        raise CheckpointError(f"{settings}: `add_prefix_space` must be false; a sentence begins as it is written here.")
    if all((folder / name).is_file() for name in _VOCABULARY):
        return Inputs(task, [folder / name for name in _VOCABULARY])
    if scratch is not None and (folder / "tokenizer.json").is_file():
        try:
            Tokenizer.from_file(str(folder / "tokenizer.json")).model.save(str(scratch))
        except Exception as ex:  # tokenizers raises nothing more specific
            raise CheckpointError(f"{folder}/tokenizer.json cannot be read: {ex}") from None
        if all((scratch / name).is_file() for name in _VOCABULARY):
            return Inputs(task, [scratch / name for name in _VOCABULARY])

    note = f"{folder} has no byte-level BPE: set `dataset.config_overrides.vocabulary` to the folder of the model's vocabulary."
    return Inputs(task, notes=[note])


def read_symbols(folder: Path, source: PretrainedConfig) -> list[str]:
    """Read what each output of a CTC model stands for, in our spelling: ``<blank>``, and ``|`` behind each word.

    :raises CheckpointError: some outputs are not named, or the blank is another one for the model than for the tokenizer.
    """
    if not (folder / _SYMBOLS_FILE).is_file():
        raise CheckpointError(f"{folder} has no {_SYMBOLS_FILE}, which names the symbols of the head; {LEAVE_OUT}")
    vocabulary = _read_json(folder / _SYMBOLS_FILE)
    # The defaults are those of Wav2Vec2CTCTokenizer.
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "word_delimiter_token": "|"}
    settings = {name: token for path in _SETTINGS_FILES for name, token in _read_json(folder / path).items()}
    for name, token in tokens.items():
        token = settings.get(name, token)
        tokens[name] = token["content"] if isinstance(token, dict) else token
    if any(not isinstance(index, int) for index in vocabulary.values()):
        raise CheckpointError(f"{folder / _SYMBOLS_FILE} has a vocabulary for each language; {LEAVE_OUT}")
    names = {index: name for name, index in vocabulary.items()}
    if sorted(names) != list(range(source.vocab_size)):
        raise CheckpointError(
            f"{folder / _SYMBOLS_FILE} names {len(names)} of the head's {source.vocab_size} symbols; {LEAVE_OUT}"
        )
    blank = vocabulary.get(tokens["pad_token"])
    if blank != source.pad_token_id:
        raise CheckpointError(
            f"{folder}: the blank is number {source.pad_token_id} in config.json (`pad_token_id`), but {blank} in the tokenizer."
        )

    special = {token: token for token in tokens.values()}
    special |= {tokens["word_delimiter_token"]: WORD_END, tokens["pad_token"]: BLANK}
    lower = str.lower if settings.get("do_lower_case", False) else str
    symbols = [special.get(names[i], lower(names[i])) for i in range(source.vocab_size)]
    if len(set(symbols)) < len(symbols):
        raise CheckpointError(f"{folder / _SYMBOLS_FILE}: two symbols are the same when spelled as here; {LEAVE_OUT}")

    return symbols


LEAVE_OUT: Final = "--no-head converts what is below it."
"""The way out, in messages."""


def _read_json(path: Path) -> dict[str, Any]:
    """Read an object; of a file that is not there an empty one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as ex:
        raise CheckpointError(f"{path} cannot be read: {ex}") from ex
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object.")

    return content


def _open(folder: Path, read: Callable[..., T], file: str) -> T | None:
    """Let transformers read a file of a folder; None = there is none.

    :raises CheckpointError: it cannot be read.
    """
    if not any((folder / name).is_file() for name in (file, "processor_config.json")):
        return None
    try:
        return read(folder, local_files_only=True)
    except Exception as ex:  # transformers lets through whatever the files provoke
        raise CheckpointError(f"{folder / file} cannot be read: {' '.join(str(ex).split())}") from ex
