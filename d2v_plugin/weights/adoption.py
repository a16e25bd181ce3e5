"""A new run's model and the weights of others: what fits comes over, what only one side has is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from fairseq2.assets import AssetStore

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.remote import localized, place
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.families import AnyConfig
from d2v_plugin.weights.bridge import find_differences, translate
from d2v_plugin.weights.convert import fairseq2, hugging_face_others
from d2v_plugin.weights.convert.fairseq import convert_fairseq
from d2v_plugin.weights.convert.hugging_face import convert_hugging_face
from d2v_plugin.weights.convert.transfer import Foreign, Transfer
from d2v_plugin.weights.directory import CONFIG_FILE, is_model_directory
from d2v_plugin.weights.library import library
from d2v_plugin.weights.positions import resize_positions
from d2v_plugin.weights.run_folder import MODEL_FILE, find_checkpoints
from d2v_plugin.weights.settings import find_differing_settings
from d2v_plugin.weights.sources import Weights
from d2v_plugin.weights.state import State, compare

_OPTIONAL: Final = (
    # data2vec 2.0
    r"modality_encoders\.\w+\.(relative_positional_encoder|decoder|fixed_positional_encoder)\.",
    r"modality_encoders\.\w+\.(alibi_scale|extra_tokens)",
    r"shared_decoder\.",
    # data2vec 1.0
    r"mask_emb",
    r"final_proj\.",
    r"encoder\.(regression_head|pos_conv|rel_pos_bias|norm)\.",
    r"encoder\.pos_embed",
    r"encoder\.blocks\.\d+\.attn\.relative_position_bias_table",
)
"""Parts that need not be on both sides: positions, what predicts, what stands at masked positions."""

_CONTEXT_NORM: Final = r"modality_encoders\.\w+\.context_encoder\.norm\."
_FREE: Final = {
    "position_width",
    "position_groups",
    "position_depth",
    "position_norm",
    "relative_positions",
    "absolute_positions",
    "image_size",
    "mask_idx",
    "num_special_tokens",
}
"""Settings of the parts that may differ."""


def read_foreign(path_or_name: str | Path, weights: Weights = "student") -> Foreign | None:
    """Read a checkpoint of other programs: a file of fairseq, a folder of Hugging Face, a run or a named model of fairseq2.

    :param weights: which of the two, of data2vec.
    :returns: None if it is one of ours, or nothing that is known here.
    :raises CheckpointError: it cannot be read, or has no counterpart here.
    """
    path = place(path_or_name)
    if path.is_file():
        with localized(path) as file:
            model = convert_fairseq(file, teacher_weights=weights == "teacher")
        transfer = Transfer.read(f"{path} ({weights})", model.info["source"]["transfer"])
        lacking = [row.part for row in transfer.rows if row.action == "new"]
        return Foreign(config=model.config, state=model.student, transfer=transfer, lacking=lacking)
    foreign = _read_foreign_directory(path) if path.is_dir() else _read_by_name(path_or_name)
    if foreign is not None and weights == "teacher":
        raise CheckpointError(f"{path_or_name} has no teacher.")

    return foreign


def _read_foreign_directory(path: Path) -> Foreign | None:
    if (path / CONFIG_FILE).is_file() and not is_model_directory(path):
        with localized(path) as folder:
            return read_hugging_face(folder)
    checkpoints = find_checkpoints(path)
    try:
        description = "" if checkpoints is None else (checkpoints / MODEL_FILE).read_text(errors="replace")
    except OSError:
        return None  # of which our own reader says more
    families = "|".join(fairseq2.FAMILIES)
    is_theirs = re.search(rf"^model_family:\s*({families})\s*$", description, re.MULTILINE) is not None

    return fairseq2.adopt(path) if is_theirs else None


def _read_by_name(path_or_name: str | Path) -> Foreign | None:
    if isinstance(path_or_name, Path) or Path(path_or_name).name != path_or_name:
        return None
    card = library().resolve(AssetStore).maybe_retrieve_card(path_or_name)
    field = None if card is None else card.maybe_get_field("model_family")

    return fairseq2.adopt(path_or_name) if field is not None and field.value in fairseq2.FAMILIES else None


def read_hugging_face(folder: Path) -> Foreign:
    """Read a folder of ``save_pretrained``.

    :raises CheckpointError: it cannot be read, or its model has no counterpart here.
    """
    try:
        model_type = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as ex:
        raise CheckpointError(f"{folder} is not a folder of Hugging Face's `save_pretrained`: {ex}") from ex
    if model_type in hugging_face_others.MODEL_TYPES:
        return hugging_face_others.adopt(folder)
    content = convert_hugging_face(folder, head=False)
    config, state = content.config, content.student
    transfer = Transfer(f"Hugging Face's {model_type}")
    transfer.add("came over", state)

    return Foreign(config=config, state=state, transfer=transfer)


def fit(own: State, config: AnyConfig, foreign: Foreign, path_or_name: str | Path) -> tuple[State, Transfer]:
    """Choose what a model takes from weights that are not those of its own architecture.

    :param own: the model's parameters.
    :param config: its configuration.
    :param path_or_name: where the weights are from, for messages.
    :returns: parameters of the model, and the table.
    :raises CheckpointError: a part that both must have differs in settings, names or shapes; names them all.
    """
    transfer = Transfer(foreign.transfer.origin, [row for row in foreign.transfer.rows if row.action == "left out"])
    state = {key: tensor for key, tensor in foreign.state.items() if key not in foreign.lacking}
    differences: list[str] = []
    optional = [*_OPTIONAL]
    source = foreign.config
    if isinstance(source, Data2Vec1ModelConfig) and isinstance(config, Data2VecConfig):
        differences = list(find_differences(source, config))
        state, left_out = translate(source, state, config)
        transfer.add("left out", left_out, "data2vec 2.0 has none")
        if config.norm_first:
            optional.append(_CONTEXT_NORM)
    elif type(source) is type(config):
        differences = list(find_differing_settings(source, config, _FREE))
    resize_positions(state, own)

    kept, new = dict(state), dict(own)
    for part in {found[0] for key in (*own, *state) if (found := _match_any(optional, key)) is not None}:
        ours, theirs = ({key for key in side if key.startswith(part)} for side in (own, state))
        if ours == theirs and all(own[key].shape == state[key].shape for key in ours):
            continue
        for key in theirs:
            del kept[key]
        for key in ours:
            del new[key]
        transfer.add("left out", sorted(theirs), "the model has another or none")
        transfer.add("new", sorted(ours), "stays as initialised")
    mismatch = compare(new, kept)
    mismatch.settings = differences
    mismatch.raise_if_any(f"{path_or_name} does not fit this model:")
    transfer.add("came over", kept)

    return kept, transfer


def _match_any(patterns: list[str], key: str) -> re.Match[str] | None:
    return next((found for pattern in patterns if (found := re.match(pattern, key)) is not None), None)
