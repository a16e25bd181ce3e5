"""From a CTC model's output to words: the best symbol of each frame, or a beam search with a lexicon and a language model.

The search is flashlight-text's (the extra ``decoding``): its wheel brings KenLM along, and it is what the published numbers were
computed with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.ranges import PositiveFloat, PositiveInt
from d2v_plugin.core.validation import Checked
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.lines import read_lines
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.transcripts import WORD_END, WORD_START, Characters
from d2v_plugin.scoring.alignment import Run, find_runs, make_transcript, make_word, spell_words, split_labels
from d2v_plugin.scoring.answers import Transcript, Word

_UNKNOWN: Final = "<unk>"
_NUM_LISTED: Final = 20


@dataclass(kw_only=True)
class BeamSearchConfig(Checked):
    """Settings of the search for words."""

    language_model: Path | None = None
    """An n-gram model: ARPA, or KenLM's binary format, which loads faster. With a lexicon it is one of words, without of symbols.
    None = all sequences are equally likely."""

    lexicon: Path | None = None
    """The words that may be said: on each line a word, a tab and its symbols with spaces in between; without a tab the word is
    spelled in characters. None = any sequence of symbols may be said."""

    beam_size: PositiveInt = 500
    """Hypotheses that are kept after each frame; the published numbers have 1500."""

    beam_threshold: PositiveFloat = 25.0
    """Largest difference in log-probability between the best and a kept hypothesis."""

    lm_weight: float = 2.0
    """Factor of the language model's score."""

    word_score: float = -1.0
    """Added for each word, with a lexicon."""


class Decoder(ABC):
    """Finds the words that an output means."""

    @abstractmethod
    def decode_batch(self, log_probs: Tensor, lengths: Tensor) -> list[Transcript]:
        """
        :param log_probs: (N, S, C) float32
        :param lengths: (N,) how many frames of each row count.
        """

    def decode(self, log_probs: Tensor) -> Transcript:
        """
        :param log_probs: (S, C) float32, without padding.
        """
        (found,) = self.decode_batch(log_probs.unsqueeze(0), torch.tensor([len(log_probs)]))
        return found


class GreedyDecoder(Decoder):
    """Takes the best symbol of each frame."""

    def __init__(self, labels: LabelSet) -> None:
        self._letters = split_labels(labels)

    @override
    def decode_batch(self, log_probs: Tensor, lengths: Tensor) -> list[Transcript]:
        # Of each frame one symbol leaves the device, not all of them.
        best, path = log_probs.max(dim=-1)
        rows = zip(path.cpu().numpy(), best.float().cpu().numpy(), lengths.tolist(), strict=True)
        return [self._spell(symbols[:length], probs[:length]) for symbols, probs, length in rows]

    def _spell(self, path: NDArray[np.int64], log_probs: NDArray[np.float32]) -> Transcript:
        runs = find_runs(path, log_probs)
        return make_transcript(spell_words(runs, self._letters), runs, log_probs)


class BeamSearchDecoder(Decoder):
    """Searches for the most likely words."""

    def __init__(self, config: BeamSearchConfig, labels: LabelSet) -> None:
        """
        :raises RecipeError: the extra is not installed, a file does not exist, or the lexicon cannot be spelled.
        """
        for name, path in (("lexicon", config.lexicon), ("language_model", config.language_model)):
            if path is not None and not path.is_file():
                raise RecipeError(f"`criterion.config.beam_search.{name}` is {path}, which does not exist.")
        try:
            from flashlight.lib.text import decoder, dictionary
        except ImportError:
            raise RecipeError(
                "`criterion.config.beam_search` needs flashlight-text; install it with: pip install flashlight-text."
            ) from None

        self._letters = split_labels(labels)
        self._words = dictionary.Dictionary()
        # Silence is no symbol of its own; where a spelling has an end of words, that is what may be silent.
        silence = self._silence = labels.indices.get(WORD_END, -1)
        criterion = decoder.CriterionType.CTC
        beam = (config.beam_size, len(labels), config.beam_threshold, config.lm_weight)
        if config.lexicon is None:
            self._add_words(labels.names)
            options = decoder.LexiconFreeDecoderOptions(*beam, 0.0, False, criterion)
            model = self._load_language_model(config, decoder)
            self._search: Any = decoder.LexiconFreeDecoder(options, model, silence, 0, [])
            self._has_lexicon = False
            return

        spellings = read_lexicon(config.lexicon, labels)
        self._add_words(dict.fromkeys(word for word, _ in spellings))
        model = self._load_language_model(config, decoder)
        trie = decoder.Trie(len(labels), silence)
        start = model.start(False)
        for word, symbols in spellings:
            index = self._words.get_index(word)
            _, score = model.score(start, index)
            trie.insert(symbols, index, score)
        # A prefix is as good as the best word it may become.
        trie.smear(decoder.SmearingMode.MAX)
        options = decoder.LexiconDecoderOptions(*beam, config.word_score, -torch.inf, 0.0, False, criterion)
        unknown = self._words.get_index(_UNKNOWN)
        self._search = decoder.LexiconDecoder(options, trie, model, silence, 0, unknown, [], False)
        self._has_lexicon = True

    @override
    def decode_batch(self, log_probs: Tensor, lengths: Tensor) -> list[Transcript]:
        rows = zip(log_probs.float().cpu(), lengths.tolist(), strict=True)
        return [self._search_row(row[:length].contiguous()) for row, length in rows]

    def _search_row(self, log_probs: Tensor) -> Transcript:
        """:param log_probs: (S, C) float32, on the CPU."""
        found = self._search.decode(log_probs.data_ptr(), *log_probs.shape) if len(log_probs) else []
        if not found:
            return Transcript(hypothesis="", confidence=0.0 if len(log_probs) else 1.0, words=[])
        # Before the first frame and after the last there is one symbol more.
        path = np.array(found[0].tokens[1:-1], dtype=np.int64)
        chosen = log_probs.numpy()[np.arange(len(path)), path]
        runs = find_runs(path, chosen)
        if not self._has_lexicon:
            return make_transcript(spell_words(runs, self._letters), runs, chosen)

        return make_transcript(self._find_words(found[0].words[1:-1], runs), runs, chosen)

    def _find_words(self, words: Sequence[int], runs: Sequence[Run]) -> list[Word]:
        """The words of a lexicon, each with the symbols that began after the word before and up to the frame where it is known.

        :param words: (S,) the word that is complete at each frame; -1 = none.
        """
        found, last = [], -1
        for frame, word in enumerate(words):
            if word >= 0:
                own = [run for run in runs if last < run.start <= frame and run.symbol != self._silence]
                found.append(make_word(self._words.get_entry(word), own))
                last = frame
        return found

    def _add_words(self, words: Iterable[str]) -> None:
        for word in words:
            self._words.add_entry(word)
        if not self._words.contains(_UNKNOWN):
            self._words.add_entry(_UNKNOWN)
        self._words.set_default_index(self._words.get_index(_UNKNOWN))

    def _load_language_model(self, config: BeamSearchConfig, decoder: Any) -> Any:
        if config.language_model is None:
            return decoder.ZeroLM()
        from flashlight.lib.text.decoder.kenlm import KenLM

        try:
            return KenLM(str(config.language_model), self._words)
        except (RuntimeError, ValueError, OSError) as error:
            raise RecipeError(f"{config.language_model} cannot be read as a language model: {error}") from None


def read_lexicon(path: Path, labels: LabelSet) -> list[tuple[str, list[int]]]:
    """Words and their symbols' numbers; a word may have several lines.

    :raises RecipeError: lines have no word, or symbols outside ``labels``; names them.
    """
    spelled_by_default = any(WORD_START in name for name in labels.names)
    found, wrong, problems = [], [], Problems()
    lines = read_lines(path, problems)
    problems.raise_if_any()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        word, tab, spelling = line.partition("\t")
        symbols: Sequence[str] = spelling.split() if tab or spelled_by_default else Characters(None).spell(word)
        if unknown := [symbol for symbol in symbols if labels.indices.get(symbol, 0) == 0]:
            wrong.append(f"{path}:{number}: symbols outside the vocabulary: {' '.join(unknown)}")
        elif not word.strip() or not symbols:
            wrong.append(f"{path}:{number}: a line must be a word, a tab and its symbols")
        else:
            found.append((word.strip(), [labels.indices[symbol] for symbol in symbols]))
    if wrong or not found:
        listed = "\n".join(wrong[:_NUM_LISTED])
        raise RecipeError(f"The lexicon {path} has {len(wrong):,} bad line(s) and {len(found):,} words:\n{listed}")

    return found
