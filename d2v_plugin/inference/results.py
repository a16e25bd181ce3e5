"""Results of using a model: its answers, with names for numbers and seconds for frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from typing_extensions import override

from d2v_plugin.core.text import escape_field
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.inference.samples import Place
from d2v_plugin.scoring.answers import Answer, Estimate, Ranking, Tagging, Transcript


@dataclass(frozen=True)
class Result(ABC):
    """What a model says of a sample; the fields of the classes below are those of a line of ``predictions.jsonl``."""

    place: Place

    @property
    def path(self) -> str:
        """The file of the sample."""
        return self.place.path

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Its fields as plain data, the place left out."""

    @abstractmethod
    def summarize(self) -> tuple[str, str]:
        """The prediction and the confidence as they stand in ``predictions.tsv``."""


@dataclass(frozen=True)
class TimedWord:
    """A word of a transcript; times count from the beginning of the recording, or of its segment."""

    word: str

    start: float
    """Seconds."""

    end: float
    """Seconds."""

    confidence: float
    """0 to 1: the geometric mean of the probabilities of its symbols."""


@final
@dataclass(frozen=True)
class Transcription(Result):
    """What is said in a recording."""

    text: str
    confidence: float
    words: Sequence[TimedWord]

    @override
    def describe(self) -> dict[str, Any]:
        words = [
            {"word": word.word, "start": round(word.start, 3), "end": round(word.end, 3), "confidence": _round(word.confidence)}
            for word in self.words
        ]
        return {"text": self.text, "confidence": _round(self.confidence), "words": words}

    @override
    def summarize(self) -> tuple[str, str]:
        return self.text, f"{self.confidence:.4f}"


@final
@dataclass(frozen=True)
class Classification(Result):
    """The class of a sample."""

    label: str
    confidence: float
    """Its probability."""

    classes: Sequence[tuple[str, float]]
    """The best classes and their probabilities, the best one first."""

    @override
    def describe(self) -> dict[str, Any]:
        classes = [{"label": label, "probability": _round(share)} for label, share in self.classes]
        return {"label": self.label, "confidence": _round(self.confidence), "classes": classes}

    @override
    def summarize(self) -> tuple[str, str]:
        return self.label, f"{self.confidence:.4f}"


@final
@dataclass(frozen=True)
class Tags(Result):
    """The tags of a sample."""

    tags: Sequence[tuple[str, float]]
    """Those that are likely enough, and their probabilities, the likeliest first."""

    @override
    def describe(self) -> dict[str, Any]:
        return {"tags": [{"tag": tag, "probability": _round(share)} for tag, share in self.tags]}

    @override
    def summarize(self) -> tuple[str, str]:
        return ";".join(tag for tag, _ in self.tags), ";".join(f"{share:.4f}" for _, share in self.tags)


@final
@dataclass(frozen=True)
class Number(Result):
    """A number."""

    value: float

    @override
    def describe(self) -> dict[str, Any]:
        return {"value": _round(self.value)}

    @override
    def summarize(self) -> tuple[str, str]:
        return f"{self.value:.6g}", ""


@final
@dataclass(frozen=True)
class Other(Result):
    """The answer of a criterion of the user's own, as it formats it."""

    answer: str
    confidence: float | None

    @override
    def describe(self) -> dict[str, Any]:
        return {"answer": self.answer} | ({} if self.confidence is None else {"confidence": _round(self.confidence)})

    @override
    def summarize(self) -> tuple[str, str]:
        return self.answer, "" if self.confidence is None else f"{self.confidence:.4f}"


@dataclass(frozen=True)
class Presenter:
    """Turns answers into results."""

    criterion: SupervisedCriterion[Any]

    frame_seconds: float | None
    """From one frame to the next; None = the model takes no recordings."""

    top_k: int = 5
    """Classes that are named, at most."""

    threshold: float = 0.5
    """Tags that are at least so likely are named."""

    def present(self, answer: Answer, place: Place) -> Result:
        match answer:
            case Transcript():
                return self._transcribe(answer, place)
            case Ranking():
                return self._classify(answer, place)
            case Tagging(hypothesis=list() as shares):
                ranked = sorted(zip(self._names, shares, strict=True), key=lambda pair: -pair[1])
                return Tags(place, [(name, share) for name, share in ranked if share >= self.threshold])
            case Estimate(hypothesis=int() | float() as value):
                return Number(place, float(value))
        return Other(place, self.criterion.format(answer.hypothesis), answer.confidence)

    def _transcribe(self, answer: Transcript, place: Place) -> Transcription:
        seconds = self.frame_seconds or 0.0
        words = [TimedWord(word.text, word.start * seconds, word.stop * seconds, word.confidence) for word in answer.words]
        return Transcription(place, str(answer.hypothesis), _sure(answer), words)

    def _classify(self, answer: Ranking, place: Place) -> Classification:
        names, shares = self._names, answer.probabilities
        assert isinstance(answer.hypothesis, list)
        # Those that the criterion decided on come first, in its order.
        decided = [int(index) for index in answer.hypothesis]
        others = sorted(set(range(len(shares))) - set(decided), key=lambda index: -shares[index])
        ranked = [*decided, *others][: self.top_k]
        return Classification(place, names[decided[0]], _sure(answer), [(names[index], shares[index]) for index in ranked])

    @property
    def _names(self) -> Sequence[str]:
        assert self.criterion.labels is not None
        return self.criterion.labels.names


HEADER = "row\tpath\tline\toffset\tsize\tstart\tprediction\tconfidence\n"
"""The first line of ``predictions.tsv``."""


def format_row(row: int, place: Place, prediction: str, confidence: str) -> str:
    """A line of ``predictions.tsv``; what a place does not have is empty."""
    known = place.describe()
    where = ["" if name not in known else str(known[name]) for name in ("line", "offset", "size", "start")]
    return "\t".join([str(row), escape_field(place.path), *where, escape_field(prediction), escape_field(confidence)]) + "\n"


def _sure(answer: Answer) -> float:
    assert answer.confidence is not None
    return answer.confidence


def _round(value: float) -> float:
    """To the nine digits that tell numbers of single precision apart."""
    return float(f"{value:.9g}")
