"""Decoding, for `python -m tools.benchmark peers`: beam search beside flashlight alone, greedy beside transformers."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Final

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import torch
from torch import Tensor

from d2v_plugin.core.lazy import LazyModule
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.scoring.ctc_decoding import BeamSearchConfig, BeamSearchDecoder, GreedyDecoder, read_lexicon
from tools.benchmark.peer_side import Side, Work

transformers = LazyModule("transformers")

LETTERS: Final = ["<blank>", "|", *string.ascii_lowercase, "'"]
BEAM: Final = 50


def decode_greedily(side: Side, tiny: bool, folder: Path) -> Work:
    log_probs = draw_log_probs(["".join(random.Random(1).choices("aeinrst|", k=90))] * (1 if tiny else 8))
    lengths = torch.full((len(log_probs),), log_probs.size(1))
    if side == "ours":
        decoder = GreedyDecoder(LabelSet(LETTERS))
        return Work(lambda: decoder.decode_batch(log_probs, lengths), True)
    (folder / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(LETTERS)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json", unk_token="'", pad_token="<blank>")
    # The confidence of words, which ours has, is made of these.
    return Work(lambda: tokenizer.batch_decode(log_probs.argmax(dim=-1), output_char_offsets=True), True)


def search_words(side: Side, tiny: bool, folder: Path) -> Work:
    """Sentences of a lexicon of random words, with noise."""
    generator = random.Random(1)
    words = sorted(
        {"".join(generator.choices(string.ascii_lowercase, k=generator.randint(2, 9))) for _ in range(50 if tiny else 20_000)}
    )
    (folder / f"{side}.txt").write_text("".join(f"{word}\t{' '.join(word)} |\n" for word in words))
    log_probs = draw_log_probs(["".join(f"{word}|" for word in generator.sample(words, 15)) for _ in range(1 if tiny else 4)])
    config = BeamSearchConfig(lexicon=folder / f"{side}.txt", beam_size=BEAM)
    if side == "ours":
        decoder = BeamSearchDecoder(config, LabelSet(LETTERS))
        lengths = torch.full((len(log_probs),), log_probs.size(1))
        return Work(
            lambda: decoder.decode_batch(log_probs, lengths),
            True,
            lambda: as_tensor([str(found.hypothesis) for found in decoder.decode_batch(log_probs, lengths)]),
        )
    from flashlight.lib.text import decoder as flashlight
    from flashlight.lib.text.dictionary import Dictionary

    known, model, trie = Dictionary([*words, "<unk>"]), flashlight.ZeroLM(), flashlight.Trie(len(LETTERS), 1)
    start = model.start(False)
    for word, symbols in read_lexicon(folder / f"{side}.txt", LabelSet(LETTERS)):
        trie.insert(symbols, known.get_index(word), model.score(start, known.get_index(word))[1])
    trie.smear(flashlight.SmearingMode.MAX)
    options = flashlight.LexiconDecoderOptions(
        BEAM,
        len(LETTERS),
        config.beam_threshold,
        config.lm_weight,
        config.word_score,
        -torch.inf,
        0.0,
        False,
        flashlight.CriterionType.CTC,
    )
    search = flashlight.LexiconDecoder(options, trie, model, 1, 0, known.get_index("<unk>"), [], False)

    def find() -> list[str]:
        rows = [search.decode(row.data_ptr(), *row.shape)[0].words for row in log_probs]
        return [" ".join(known.get_entry(word) for word in row if word >= 0) for row in rows]

    return Work(find, True, lambda: as_tensor(find()))


def draw_log_probs(texts: list[str]) -> Tensor:
    """(N, S, C): each letter over two frames, then two blanks; what else may be said is likely, too."""
    rows = [[LETTERS.index(letter) for letter in text for letter in (letter, letter, "<blank>", "<blank>")] for text in texts]
    length = max(map(len, rows))
    likely = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return (torch.randn(*likely.shape, len(LETTERS)) + 6 * torch.nn.functional.one_hot(likely, len(LETTERS))).log_softmax(dim=-1)


def as_tensor(texts: list[str]) -> Tensor:
    return torch.tensor(list("\n".join(texts).encode()))
