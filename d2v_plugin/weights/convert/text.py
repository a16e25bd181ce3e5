"""RoBERTa and BERT of Hugging Face, and fairseq's RoBERTa -> data2vec 1.0's encoder for text, which computes the same.

Both are post-norm Transformers over embeddings with a norm. The embedding of the first segment, which stands at every token of a
single text, is added to the positions; a second one has no place. BERT numbers positions from 0, here they begin after those of
padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig, TextConfig
from d2v_plugin.weights.convert.transfer import Foreign, Names, Transfer, check_fixed, complete, rename, split_fused
from d2v_plugin.weights.state import Mismatch

_BASE: Final = "encoder.sentence_encoder."
_BLOCK: Final = _BASE + r"layers.\1."
_HEAD: Final = "a head on top of the encoder"
_TYPES: Final = "embeddings.token_type_embeddings.weight"
_POSITIONS: Final = f"{_BASE}embed_positions.weight"

HUGGING_FACE: Final = Names(
    rules=[
        (r"embeddings\.word_embeddings\.weight", f"{_BASE}embed_tokens.weight"),
        (r"embeddings\.position_embeddings\.weight", _POSITIONS),
        (r"embeddings\.LayerNorm\.(weight|bias)", _BASE + r"layernorm_embedding.\1"),
        (r"encoder\.layer\.(\d+)\.attention\.self\.query\.(\w+)", _BLOCK + r"self_attn.q_proj.\2"),
        (r"encoder\.layer\.(\d+)\.attention\.self\.key\.(\w+)", _BLOCK + r"self_attn.k_proj.\2"),
        (r"encoder\.layer\.(\d+)\.attention\.self\.value\.(\w+)", _BLOCK + r"self_attn.v_proj.\2"),
        (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", _BLOCK + r"self_attn.out_proj.\2"),
        (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(\w+)", _BLOCK + r"self_attn_layer_norm.\2"),
        (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", _BLOCK + r"fc1.\2"),
        (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", _BLOCK + r"fc2.\2"),
        (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(\w+)", _BLOCK + r"final_layer_norm.\2"),
    ],
    left_out={
        r"(pooler|classifier|lm_head|cls|qa_outputs)\.": _HEAD,
        r"embeddings\.position_ids$": "computed here",
    },
)
FAIRSEQ: Final = Names(
    rules=[
        (r"(encoder\.sentence_encoder\.(?:embed_tokens|embed_positions|layernorm_embedding)\.\w+)", r"\1"),
        (
            r"(encoder\.sentence_encoder\.layers\.\d+\.(?:self_attn\.(?:[kvq]|out)_proj|self_attn_layer_norm|fc1|fc2|"
            r"final_layer_norm)\.\w+)",
            r"\1",
        ),
    ],
    left_out={r"encoder\.lm_head\.": "belongs to the original's objective", r".*\.version$": "no weights"},
)


def adopt_hugging_face(path: Path, source: Any, weights: Mapping[str, Tensor]) -> Foreign:
    """Make a model of ours of Hugging Face's ``roberta``, ``xlm-roberta`` or ``bert``.

    :param path: the folder, for messages; of BERT its ``vocab.txt`` says which token is ``[MASK]``.
    :param source: its configuration.
    :param weights: without the prefix of models with heads.
    :raises CheckpointError: the model uses something that only Hugging Face has, or the weights are not those of it.
    """
    check_fixed(path, source, hidden_act="gelu", position_embedding_type="absolute", is_decoder=False)
    if source.pad_token_id is None:
        raise CheckpointError(f"{path}: `pad_token_id` must be given.")
    is_bert = source.model_type == "bert"
    pad, length = source.pad_token_id, source.max_position_embeddings
    text = TextConfig(
        vocab_size=source.vocab_size,
        pad_idx=pad,
        max_positions=length if is_bert else length - pad - 1,
        **_find_special(path, is_bert),
    )
    config = Data2Vec1ModelConfig(
        text=text,
        dim=source.hidden_size,
        ffn_dim=source.intermediate_size,
        depth=source.num_hidden_layers,
        num_heads=source.num_attention_heads,
        norm_eps=source.layer_norm_eps,
        dropout=source.hidden_dropout_prob,
        attention_dropout=source.attention_probs_dropout_prob,
        head_layers=0,
    )
    # Files of TensorFlow's time call the norms' parameters so.
    weights = {
        key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): t
        for key, t in weights.items()
    }
    types = weights.pop(_TYPES, None)
    transfer, problems = Transfer(f"Hugging Face's {source.model_type}"), Mismatch()
    state = rename(weights, HUGGING_FACE, transfer, problems)
    remarks = {}
    positions = state.get(_POSITIONS)
    if is_bert and positions is not None:
        positions = torch.cat([torch.zeros(pad + 1, positions.size(1)), positions])
    if types is not None and positions is not None:
        positions = positions.clone()
        positions[pad + 1 :] += types[0].float()
        remarks[f"{_BASE}embed_positions"] = "with the embedding of the first segment added"
        if len(types) > 1:
            transfer.add(
                "left out",
                [f"embeddings.token_type_embeddings.{row}.weight" for row in range(1, len(types))],
                "segments other than the first",
            )
    if positions is not None:
        state[_POSITIONS] = positions
    return complete(path, config, state, transfer, problems, remarks=remarks)


def adopt_fairseq(path: Path, args: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Foreign:
    """Make a model of ours of fairseq's RoBERTa.

    :param path: the file, for messages.
    :param args: its settings; what is missing is the base model's, or the large one's where ``arch`` says so.
    :param weights: without heads.
    :raises CheckpointError: the model uses something that only fairseq has, or the weights are not those of it.
    """
    check_fixed(
        path, args, activation_fn="gelu", encoder_normalize_before=False, untie_weights_roberta=False, encoder_layers_to_keep=None
    )
    is_large = "large" in str(args.get("arch") or args.get("_name"))
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        key = "encoder." + key.removeprefix("decoder.") if key.startswith("decoder.") else key
        renamed[key.replace(".emb_layer_norm.", ".layernorm_embedding.")] = tensor
    parts = [f".self_attn.{part}_proj." for part in "qkv"]
    renamed = split_fused(renamed, r"\.self_attn\.in_proj_", parts)
    tokens, positions = (renamed.get(f"{_BASE}{name}.weight") for name in ("embed_tokens", "embed_positions"))
    get = args.get
    config = Data2Vec1ModelConfig(
        text=TextConfig(
            # Without embeddings the report of missing names says so.
            vocab_size=2 if tokens is None else len(tokens),
            max_positions=512 if positions is None else len(positions) - 2,
        ),
        dim=get("encoder_embed_dim", 1024 if is_large else 768),
        ffn_dim=get("encoder_ffn_embed_dim", 4096 if is_large else 3072),
        depth=get("encoder_layers", 24 if is_large else 12),
        num_heads=get("encoder_attention_heads", 16 if is_large else 12),
        dropout=get("dropout", 0.1),
        attention_dropout=get("attention_dropout", 0.1),
        activation_dropout=get("activation_dropout", 0.0),
        layer_drop=get("encoder_layerdrop", 0.0),
        head_layers=0,
    )
    transfer, problems = Transfer("fairseq's RoBERTa"), Mismatch()
    state = rename(renamed, FAIRSEQ, transfer, problems)
    return complete(path, config, state, transfer, problems)


def _find_special(path: Path, is_bert: bool) -> dict[str, int]:
    """BERT's special tokens are somewhere in its vocabulary; RoBERTa's are where ours are expected."""
    vocabulary = path / "vocab.txt"
    if not is_bert or not vocabulary.is_file():
        return {}
    tokens = vocabulary.read_text(encoding="utf-8").splitlines()
    special = [tokens.index(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in tokens]

    return {"mask_idx": tokens.index("[MASK]"), "num_special_tokens": max(special) + 1} if "[MASK]" in tokens else {}
