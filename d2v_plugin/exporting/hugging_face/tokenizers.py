"""Vocabularies as tokenizers of Hugging Face: SentencePiece, byte-level BPE, and the symbols of CTC; ids are ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.processors import TemplateProcessing

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.data.text import BEGINNING, END, NUM_SPECIAL, PADDING, UNKNOWN, Tokenizer
from d2v_plugin.data.tokenizers import ByteBPETokenizer, TextTokenizer, open_tokenizer
from d2v_plugin.data.transcripts import BLANK, WORD_END, WORD_START

_SPECIAL: Final = {"<s>": BEGINNING, "<pad>": PADDING, "</s>": END, "<unk>": UNKNOWN}
_UNIGRAM, _BPE = 1, 2

# What normalization, unknown characters and repetitions make hard.
_SAMPLES: Final = [
    "Hello,  world ! ",
    "Ünïcödé naïve café \N{LATIN SMALL LIGATURE FI} ½ ①",
    "数据 日本\N{SOFT HYPHEN} \N{CYRILLIC SMALL LETTER IE}\tx",
    "aaaa aaa bbbb 1,000.50 10%",
    "it's O'Neil's",
]


def write_tokenizer(vocabulary: Path, folder: Path, *, max_length: int) -> None:
    """Write the tokenizer of a text model: ``<s> sentence </s>``, ``<s> first </s> </s> second </s>``.

    :param vocabulary: the folder of :func:`d2v_plugin.data.tokenizers.open_tokenizer`.
    :param max_length: in tokens.
    :raises CheckpointError: it has something that Hugging Face's tokenizers lack.
    :raises RecipeError: there is no vocabulary.
    """
    ours = open_tokenizer(vocabulary)
    if isinstance(ours, Tokenizer):
        theirs = _build_pieces(ours.path, _number_pieces(ours))
    else:
        assert isinstance(ours, ByteBPETokenizer)
        theirs = ours.with_our_ids()
    theirs.add_special_tokens([*_SPECIAL, AddedToken("<mask>", lstrip=True, special=True)])
    theirs.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", BEGINNING), ("</s>", END)]
    )
    _check_same(ours, theirs, vocabulary)
    settings = {
        "model_max_length": max_length,
        **{f"{name}_token": token for name, token in (("bos", "<s>"), ("cls", "<s>"), ("eos", "</s>"), ("sep", "</s>"))},
        **{"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
        "model_input_names": ["input_ids", "attention_mask"],
    }
    _save(theirs, folder, settings)


def write_symbols(labels: Sequence[str], pieces: Path | None, folder: Path) -> None:
    """Write the tokenizer of a CTC model: its outputs by number, of which 0 is the blank.

    :param pieces: the SentencePiece model that the symbols are pieces of; None = they are characters.
    """
    if pieces is None and not any(WORD_START in label for label in labels):
        vocabulary = {label: index for index, label in enumerate(labels)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        settings = {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            **{"pad_token": BLANK, "unk_token": "<unk>", "bos_token": None, "eos_token": None},
            "word_delimiter_token": WORD_END if WORD_END in vocabulary else None,
            "replace_word_delimiter_char": " ",
            "do_lower_case": False,
            "clean_up_tokenization_spaces": False,
        }
        _write_settings(folder, settings)
        return

    if pieces is None:
        raise CheckpointError("The symbols of the head are pieces of a SentencePiece model, which is not there.")
    theirs = _build_pieces(pieces, {label: index for index, label in enumerate(labels)}, unknown=None)
    theirs.decoder = decoders.Sequence(
        [
            decoders.CTC(BLANK, WORD_START, cleanup=False),
            decoders.Replace(WORD_START, " "),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    theirs.add_special_tokens([BLANK])
    _save(theirs, folder, {"pad_token": BLANK})


def _number_pieces(ours: Tokenizer) -> dict[str, int]:
    size = ours.vocabulary.size
    names = ours.pieces(range(NUM_SPECIAL, size - 1))

    return {**_SPECIAL, **{name: token for token, name in enumerate(names, NUM_SPECIAL)}, "<mask>": size - 1}


def _build_pieces(path: Path, ids: Mapping[str, int], unknown: str | None = "<unk>") -> tokenizers.Tokenizer:
    """A SentencePiece model with other ids.

    :param ids: of all pieces that are put out.
    """
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(path.read_bytes())
    kind, spec = model.trainer_spec.model_type, model.normalizer_spec
    ranked = [piece for piece in model.pieces if piece.piece in ids]
    if kind == _BPE:
        found = tokenizers.Tokenizer(
            BPE(dict(ids), _find_merges(ranked), unk_token=unknown, fuse_unk=True, byte_fallback=model.trainer_spec.byte_fallback)
        )
    elif kind == _UNIGRAM:
        scores = {piece.piece: piece.score for piece in ranked}
        pieces = [(name, scores.get(name, 0.0)) for name, _ in sorted(ids.items(), key=lambda item: item[1])]
        number = None if unknown is None else ids[unknown]
        found = tokenizers.Tokenizer(Unigram(pieces, unk_id=number, byte_fallback=model.trainer_spec.byte_fallback))
    else:
        raise CheckpointError(f"{path} is neither a BPE nor a unigram model of SentencePiece; nothing else is exported.")

    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    found.normalizer = normalizers.Sequence(steps)
    scheme = "always" if spec.add_dummy_prefix else "never"
    found.pre_tokenizer = pre_tokenizers.Metaspace(WORD_START, prepend_scheme=scheme)
    found.decoder = decoders.Sequence(
        [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )

    return found


def _find_merges(pieces: Sequence[Any]) -> list[tuple[str, str]]:
    """Pairs of pieces in the order in which SentencePiece joins them: by the score of what they become."""
    rank = {piece.piece: index for index, piece in enumerate(sorted(pieces, key=lambda piece: -piece.score))}
    merges = []
    for whole in sorted(rank, key=rank.__getitem__):
        pairs = [(whole[:i], whole[i:]) for i in range(1, len(whole))]
        merges += sorted((pair for pair in pairs if all(part in rank for part in pair)), key=lambda pair: [rank[p] for p in pair])

    return merges


def _check_same(ours: TextTokenizer, theirs: tokenizers.Tokenizer, vocabulary: Path) -> None:
    """Compare ids of strings of all kinds.

    :raises CheckpointError: they differ.
    """
    tokens = range(NUM_SPECIAL, ours.vocabulary.size - 1)
    lines = [ours.decode(range(first, min(first + 7, tokens.stop))) for first in tokens[::5]]
    lines += [ours.decode(tokens[first::97]) for first in range(min(97, len(tokens)))]
    lines += _SAMPLES
    lines = [line for line in lines if line.strip() and not any(name in line for name in (*_SPECIAL, "<mask>"))]
    found = [line.ids for line in theirs.encode_batch(lines, add_special_tokens=False)]
    for line, expected, ids in zip(lines, ours.encode_lines(lines), found, strict=True):
        if expected.tolist() != ids:
            raise CheckpointError(
                f"{vocabulary}: Hugging Face's tokenizers split {line!r:.80} into other ids than our own; the vocabulary has "
                "something that they lack."
            )


def _save(tokenizer: tokenizers.Tokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_settings(folder, {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **settings})


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
