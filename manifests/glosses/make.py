"""Make manifests/glosses: WordNet's definitions of nouns, as token ids; and manifests/gloss_kinds: some as text, labelled.

Reads the Debian package wordnet-base (apt-get download wordnet-base; dpkg-deb -x wordnet-base*.deb FOLDER).

python -m manifests.glosses.make FOLDER [OUT [OUT_OF_KINDS]]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d2v_plugin.data.preparation.documents import Document
from d2v_plugin.data.random import Purpose, draw_permutation
from manifests.making import SEED, run, write_documents

# Lexicographer files of WordNet, by their numbers (lexnames(5WN)); the ten with the most definitions.
KINDS = {
    "04": "act",
    "05": "animal",
    "06": "artifact",
    "07": "attribute",
    "10": "communication",
    "15": "location",
    "18": "person",
    "20": "plant",
    "26": "state",
    "27": "substance",
}
NUM_PER_KIND = 2900
NUM_VALID_PER_KIND = 100
NUM_PROBE_PER_KIND = 60
SHORTEST = 30


def read_glosses(folder: Path) -> list[Document]:
    """Equally many definitions of each kind, in random order; examples of use, which follow in quotes, stay."""
    found: dict[str, list[Document]] = {kind: [] for kind in KINDS.values()}
    with (folder / "usr" / "share" / "wordnet" / "data.noun").open(encoding="ascii") as lines:
        for line in lines:
            # The licence stands in lines that begin with spaces.
            if line.startswith(" "):
                continue
            offset, kind, *_ = line.split(" ", 2)
            gloss = line.partition(" | ")[2].strip()
            if kind in KINDS and len(gloss) >= SHORTEST:
                found[KINDS[kind]].append(Document(offset, [gloss], KINDS[kind]))

    glosses: list[Document] = []
    for documents in found.values():
        order = draw_permutation(SEED, 0, Purpose.SPLIT, len(documents))
        glosses += [documents[index] for index in order[:NUM_PER_KIND]]

    return [glosses[index] for index in draw_permutation(SEED, 1, Purpose.SPLIT, len(glosses))]


def take(documents: Sequence[Document], count: int) -> tuple[list[Document], list[Document]]:
    """The first ``count`` of each kind, and the others."""
    left = dict.fromkeys(KINDS.values(), count)
    taken: list[Document] = []
    others: list[Document] = []
    for document in documents:
        assert document.label is not None
        left[document.label] -= 1
        (taken if left[document.label] >= 0 else others).append(document)

    return taken, others


def write_table(documents: Sequence[Document], path: Path) -> None:
    """What fine-tuning reads."""
    lines = ["gloss\tkind", *(f"{document.lines[0]}\t{document.label}" for document in documents)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make(source: Path, glosses: Path, kinds: Path) -> None:
    """Write both datasets; what is text in the one is labelled token ids in the other."""
    valid, train = take(read_glosses(source), NUM_VALID_PER_KIND)
    probe, _ = take(train, NUM_PROBE_PER_KIND)
    write_documents(glosses, train, probe, valid)
    write_table(probe, kinds / "train.tsv")
    write_table(valid, kinds / "valid.tsv")


if __name__ == "__main__":
    run(__doc__, make, "glosses", "gloss_kinds", source="FOLDER")
