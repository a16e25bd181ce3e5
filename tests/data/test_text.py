"""Cutting a stream of tokens into samples, as fairseq's TokenBlockDataset does."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.blocks import BreakMode, cut_blocks
from d2v_plugin.data.dataset import ManifestConfig, TextManifest
from d2v_plugin.data.problems import ManifestError
from d2v_plugin.data.text import Tokenizer, TokenStream, Vocabulary, pad_tokens

VOCABULARY = Vocabulary(1000)
END = VOCABULARY.end
# Two documents, of lines of 4, 6, 3 and 12 and 2 tokens, `</s>` included; a lone `</s>` ends a document.
LINES = [[10, 11, 12, END], [*range(20, 25), END], [30, 31, END], [END], [*range(40, 51), END], [60, END], [END]]


def open_stream(folder: Path, *shards: list[list[int]]) -> TokenStream:
    VOCABULARY.save(folder)
    rows = ["."]
    for number, lines in enumerate(shards):
        tokens = np.array(list(itertools.chain(*lines)), dtype=VOCABULARY.dtype)
        tokens.tofile(folder / f"{number}.bin")
        np.cumsum([len(line) for line in lines]).astype("<i8").tofile(folder / f"{number}.idx")
        rows.append(f"{number}.bin\t{len(tokens)}")
    (folder / "train.tsv").write_text("\n".join(rows) + "\n")
    dataset = TextManifest.open(ManifestConfig(path=folder))

    return TokenStream(dataset.split("train"), dataset.vocabulary)


def cut(stream: TokenStream, size: int, mode: BreakMode) -> list[list[int]]:
    return [stream.read(start, stop).tolist() for start, stop in zip(*cut_blocks(stream, size, mode), strict=True)]


@pytest.mark.parametrize("split_at", [0, 1, 3, 5, 7])
def test_full_blocks_run_over_lines_documents_and_shards(tmp_path: Path, split_at: int) -> None:
    stream = open_stream(tmp_path, LINES[:split_at], LINES[split_at:])
    blocks = cut(stream, 8, "none")

    assert [len(block) for block in blocks] == [8, 8, 8, 5]
    assert list(itertools.chain(*blocks)) == list(itertools.chain(*LINES))


def test_complete_blocks_keep_lines_whole(tmp_path: Path) -> None:
    stream = open_stream(tmp_path, LINES[:2], LINES[2:])

    assert cut(stream, 12, "complete") == [[*LINES[0], *LINES[1]], [*LINES[2], *LINES[3]], LINES[4], [*LINES[5], *LINES[6]]]


def test_complete_documents_are_not_mixed(tmp_path: Path) -> None:
    stream = open_stream(tmp_path, LINES)

    assert cut(stream, 13, "complete_doc") == [[*LINES[0], *LINES[1], *LINES[2]], LINES[4], LINES[5]]
    assert cut(stream, 100, "complete_doc") == [[*LINES[0], *LINES[1], *LINES[2]], [*LINES[4], *LINES[5]]]


def test_a_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    assert [len(block) for block in cut(open_stream(tmp_path, LINES), 5, "complete_doc")] == [4, 5, 3, 5, 2]


def test_lines_can_be_blocks(tmp_path: Path) -> None:
    assert cut(open_stream(tmp_path, LINES), 100, "eos") == LINES


def test_blocks_equal_fairseqs_on_random_text(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lines = [[*([5] * int(size)), END] for size in random.choice([0, 1, 2, 5, 9, 14], 300)]
    stream = open_stream(tmp_path, lines)

    assert [len(block) for block in cut(stream, 15, "complete_doc")] == fairseq_complete_doc([len(line) for line in lines], 15)


def fairseq_complete_doc(sizes: list[int], block_size: int) -> list[int]:
    """The rule of token_block_utils_fast.pyx: a one-token line ends the document, blocks of one token are dropped."""
    blocks, current = [], 0
    for size in [*sizes, 1]:
        if size == 1 or (current and current + size > block_size):
            if current > 1:
                blocks.append(current)
            current = 0
        if size != 1:
            current += size

    return blocks


def test_samples_begin_with_s_and_are_padded_at_the_end_only() -> None:
    inputs, padding_mask, min_length = pad_tokens([np.array([5, 6]), np.array([7, 8, 9, 2])])

    assert inputs.tolist() == [[0, 5, 6, 1, 1], [0, 7, 8, 9, 2]]
    assert padding_mask is not None and padding_mask.tolist() == [[False] * 3 + [True] * 2, [False] * 5]
    assert min_length == 3
    assert pad_tokens([np.array([5]), np.array([6])])[1:] == (None, None)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    stream = open_stream(tmp_path, [[10, 1000, END]])
    with pytest.raises(SampleError, match="Token id 1000 is not in the vocabulary of 1000"):
        stream.read(0, 3)


def test_shards_that_do_not_fit_their_manifest_are_all_named(tmp_path: Path) -> None:
    open_stream(tmp_path, LINES, LINES, LINES)
    for number in (0, 2):
        (tmp_path / f"{number}.bin").write_bytes((tmp_path / f"{number}.bin").read_bytes()[:-1])
    dataset = TextManifest.open(ManifestConfig(path=tmp_path))
    with pytest.raises(ManifestError, match=r"(?s)train.tsv:2: .*0.bin has .*train.tsv:4: .*2.bin has"):
        TokenStream(dataset.split("train"), dataset.vocabulary)


def test_a_missing_or_foreign_index_is_refused(tmp_path: Path) -> None:
    stream = open_stream(tmp_path, LINES)
    np.array([3], dtype="<i8").tofile(tmp_path / "0.idx")
    with pytest.raises(ManifestError, match="does not fit its shard"):
        stream.line_ends()
    (tmp_path / "0.idx").unlink()
    with pytest.raises(ManifestError, match="No such file"):
        stream.line_ends()


@pytest.mark.parametrize("ends", [[4, 10**6, 30], [10, 4, 30], [-5, 4, 30], [4, 4, 30], b"odd"])
def test_an_index_that_does_not_ascend_or_is_cut_off_is_refused(ends: list[int] | bytes, tmp_path: Path) -> None:
    stream = open_stream(tmp_path, [LINES[0] * 7, [5, END]])
    content = ends if isinstance(ends, bytes) else np.array(ends, dtype="<i8").tobytes()
    (tmp_path / "0.idx").write_bytes(content)
    with pytest.raises(ManifestError, match="does not fit its shard"):
        stream.line_ends()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no JSON"),
        ("[]", "is damaged: its `size`"),
        ('{"beginning": 0}', "is damaged: its `size`"),
        ('{"size": true}', "is damaged: its `size`"),
        ('{"size": -7}', "is damaged: its `size`"),
        ('{"size": 300}', "has other special ids"),
        ('{"size": 300, "beginning": 0, "padding": 1, "end": 2, "unknown": 3, "dtype": "uint32"}', "stored as uint16"),
    ],
)
def test_a_damaged_vocabulary_is_told_in_one_line(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(RecipeError, match=reason):
        Vocabulary.load(tmp_path)


def test_a_vocabulary_of_another_tokenizer_and_a_broken_model_are_refused(tmp_path: Path) -> None:
    VOCABULARY.save(tmp_path, "0123456789abcdef")
    assert Vocabulary.load(tmp_path).tokenizer == "0123456789abcdef"
    (tmp_path / "sentencepiece.model").write_bytes(b"no model")
    with pytest.raises(RecipeError, match="do not belong together"):
        Vocabulary.load(tmp_path)
    with pytest.raises(RecipeError, match="is no SentencePiece model"):
        Tokenizer(tmp_path / "sentencepiece.model")
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        Tokenizer(tmp_path / "missing.model")


def test_the_vocabulary_is_laid_out_as_fairseqs(tmp_path: Path) -> None:
    VOCABULARY.save(tmp_path)
    content = json.loads((tmp_path / "vocabulary.json").read_text())

    assert content == {
        "size": 1000, "beginning": 0, "padding": 1, "end": 2, "unknown": 3, "mask": 999, "dtype": "uint16"
    }  # fmt: skip
    assert Vocabulary.load(tmp_path) == VOCABULARY
    assert Vocabulary(70_000).dtype == np.dtype("<u4")
    (tmp_path / "vocabulary.json").write_text(json.dumps({**content, "padding": 7}))
    with pytest.raises(RecipeError, match="other special ids"):
        Vocabulary.load(tmp_path)
    with pytest.raises(RecipeError, match="does not exist"):
        Vocabulary.load(tmp_path / "nowhere")
