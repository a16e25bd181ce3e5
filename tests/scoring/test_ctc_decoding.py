"""From a CTC model's output to words."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.transcripts import BLANK
from d2v_plugin.scoring.answers import Transcript
from d2v_plugin.scoring.ctc_decoding import BeamSearchConfig, BeamSearchDecoder, GreedyDecoder

LABELS = LabelSet([BLANK, "|", "a", "b", "c"])
PIECES = LabelSet([BLANK, "▁a", "b", "▁c"])


def emit(path: str, *, labels: LabelSet = LABELS, confidence: float = 5.0) -> Tensor:
    """Log-probabilities (S, C) whose best symbols are those of the path; ``-`` is the blank."""
    numbers = [0 if symbol == "-" else labels.indices[symbol] for symbol in path]

    return (torch.eye(len(labels))[numbers] * confidence).log_softmax(-1)


def texts(transcripts: list[Transcript]) -> list[str]:
    return [str(transcript.hypothesis) for transcript in transcripts]


def write_arpa(path: Path, unigrams: dict[str, float], bigrams: dict[str, float]) -> Path:
    """A language model with base-10 logarithms."""
    lines = ["\\data\\", f"ngram 1={len(unigrams) + 3}", f"ngram 2={len(bigrams)}", ""]
    lines += ["\\1-grams:", "-4\t<unk>\t0", "-99\t<s>\t0", "-1\t</s>\t0"]
    lines += [f"{score}\t{word}\t0" for word, score in unigrams.items()] + [""]
    lines += ["\\2-grams:", *(f"{score}\t{words}" for words, score in bigrams.items()), ""]
    path.write_text("\n".join([*lines, "\\end\\", ""]))

    return path


def test_repeated_symbols_count_once_and_blanks_not_at_all() -> None:
    assert GreedyDecoder(LABELS).decode(emit("-aa-abb|-|c")).hypothesis == "aab c"
    assert GreedyDecoder(LABELS).decode(emit("-aa-ab||-c|")).hypothesis == "aab c"
    assert GreedyDecoder(LABELS).decode(emit("---")).hypothesis == ""
    assert GreedyDecoder(PIECES).decode(torch.eye(4)[[1, 0, 2, 3, 3]]).hypothesis == "ab c"


def test_padding_is_not_decoded() -> None:
    log_probs = torch.stack([emit("ab-|c|"), emit("c|abca")])
    assert texts(GreedyDecoder(LABELS).decode_batch(log_probs, torch.tensor([6, 2]))) == ["ab c", "c"]


def test_words_have_times_and_confidences() -> None:
    log_probs = emit("-aa-ab||-c-")
    log_probs[4] = torch.tensor([0.1, 0.1, 0.6, 0.1, 0.1]).log()
    sure = float(log_probs[0].max().exp())

    first, second = GreedyDecoder(LABELS).decode(log_probs).words

    assert (first.text, first.start, first.stop) == ("aab", 1, 6)
    assert (second.text, second.start, second.stop) == ("c", 9, 10)
    # Of the first word four frames have a symbol, one of them with a probability of 0.6.
    assert first.confidence == pytest.approx((sure**3 * 0.6) ** 0.25) and second.confidence == pytest.approx(sure)


def test_where_nothing_is_said_blanks_give_the_confidence() -> None:
    silent = GreedyDecoder(LABELS).decode(emit("---"))

    assert silent.hypothesis == "" and silent.words == [] and silent.confidence == pytest.approx(emit("-")[0, 0].exp().item())
    assert GreedyDecoder(LABELS).decode(torch.empty(0, 5)).confidence == 1.0


def test_a_search_gives_the_same_times(tmp_path: Path) -> None:
    log_probs = emit("-abb|b-a--")
    (tmp_path / "lexicon.txt").write_text("ab\nba\n")
    expected = GreedyDecoder(LABELS).decode(log_probs)

    for lexicon in (None, tmp_path / "lexicon.txt"):
        found = BeamSearchDecoder(BeamSearchConfig(lexicon=lexicon), LABELS).decode(log_probs)
        assert [(word.text, word.start, word.stop) for word in found.words] == [("ab", 1, 4), ("ba", 5, 8)]
        assert [word.confidence for word in found.words] == pytest.approx([word.confidence for word in expected.words])


def test_a_search_without_files_agrees_with_greedy_decoding() -> None:
    for path in ("-aa-ab||-c|", "abc|"):
        assert (
            BeamSearchDecoder(BeamSearchConfig(), LABELS).decode(emit(path)).hypothesis
            == GreedyDecoder(LABELS).decode(emit(path)).hypothesis
        )


def test_only_words_of_the_lexicon_are_found(tmp_path: Path) -> None:
    (tmp_path / "lexicon.txt").write_text("abc\nba\tb a |\n\n")
    decoder = BeamSearchDecoder(BeamSearchConfig(lexicon=tmp_path / "lexicon.txt"), LABELS)

    assert decoder.decode(emit("abb|ba|")).hypothesis == "abc ba"
    found = decoder.decode_batch(torch.stack([emit("abb|ba|"), emit("ba|cccc")]), torch.tensor([7, 3]))
    assert texts(found) == ["abc ba", "ba"]


def test_a_language_model_decides_between_words_that_sound_alike(tmp_path: Path) -> None:
    (tmp_path / "lexicon.txt").write_text("ab\nac\nca\n")
    # The third frame cannot tell b from c; after `ca`, `ac` is likelier.
    log_probs = emit("ca|ab|")
    log_probs[4, 3] = log_probs[4, 4] = -0.7
    for likely, unlikely in (("ab", "ac"), ("ac", "ab")):
        model = write_arpa(
            tmp_path / "lm.arpa", {"ab": -1.0, "ac": -1.0, "ca": -1.0}, {f"ca {likely}": -0.1, f"ca {unlikely}": -3.0}
        )
        config = BeamSearchConfig(lexicon=tmp_path / "lexicon.txt", language_model=model)
        assert BeamSearchDecoder(config, LABELS).decode(log_probs).hypothesis == f"ca {likely}"


def test_without_a_lexicon_the_language_model_is_one_of_symbols(tmp_path: Path) -> None:
    log_probs = emit("ab|")
    log_probs[1, 3] = log_probs[1, 4] = -0.7
    for symbol in "bc":
        scores = {name: -0.1 if name == symbol else -2.0 for name in LABELS.names[1:]}
        config = BeamSearchConfig(language_model=write_arpa(tmp_path / "lm.arpa", scores, {"| |": -9.0}))
        assert BeamSearchDecoder(config, LABELS).decode(log_probs).hypothesis == f"a{symbol}"


def test_a_wide_search_finds_words_in_noise_that_greedy_decoding_misses(tmp_path: Path) -> None:
    words = ["abc", "cab", "bca", "aab", "cbb"]
    (tmp_path / "lexicon.txt").write_text("\n".join(words))
    decoder = BeamSearchDecoder(BeamSearchConfig(lexicon=tmp_path / "lexicon.txt", word_score=0.0), LABELS)
    random = np.random.default_rng(0)
    greedy, searched = 0, 0
    for _ in range(20):
        word = str(random.choice(words))
        path = "-".join(f"{word}|")
        noisy = torch.from_numpy(random.normal(0.0, 1.7, (len(path), len(LABELS))).astype(np.float32))
        log_probs = (emit(path, confidence=4.0) + noisy).log_softmax(-1)
        greedy += GreedyDecoder(LABELS).decode(log_probs).hypothesis == word
        searched += decoder.decode(log_probs).hypothesis == word

    assert searched > greedy + 5


def test_a_lexicon_outside_the_vocabulary_is_refused_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("ab\nxab\nba\tb y |\n\t\n")
    with pytest.raises(RecipeError) as caught:
        BeamSearchDecoder(BeamSearchConfig(lexicon=path), LABELS)
    message = str(caught.value)

    assert "2 bad line(s)" in message
    assert f"{path}:2: symbols outside the vocabulary: x" in message
    assert f"{path}:3: symbols outside the vocabulary: y" in message


@pytest.mark.parametrize("name", ["lexicon", "language_model"])
def test_missing_files_are_named_with_their_setting(tmp_path: Path, name: str) -> None:
    config = BeamSearchConfig(**{name: tmp_path / "missing"})  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=f"beam_search.{name}` is .*missing, which does not exist"):
        BeamSearchDecoder(config, LABELS)


def test_a_file_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text("not a model")
    with pytest.raises(RecipeError, match=r"lm\.arpa cannot be read as a language model"):
        BeamSearchDecoder(BeamSearchConfig(language_model=tmp_path / "lm.arpa"), LABELS)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(RecipeError, match=r"pip install flashlight-text"):
        BeamSearchDecoder(BeamSearchConfig(), LABELS)
