"""Make manifests/english: 58 MB of English, as token ids; and english_kinds and english_sections beside it, labelled text.

Reads unpacked Debian packages FOLDER/dict-gcide and FOLDER/wordnet-base, and the descriptions of all packages in
FOLDER/lists; README.md says how to get them.

python -m manifests.english.make FOLDER [OUT [OUT_OF_KINDS [OUT_OF_SECTIONS]]]
"""

from __future__ import annotations

import gzip
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from d2v_plugin.data.preparation.documents import Document
from d2v_plugin.data.random import Purpose, draw_permutation
from manifests.glosses.make import KINDS
from manifests.making import SEED, run, write_documents

VOCABULARY_SIZE = 4000
SHORTEST = 30
NUM_SECTIONS = 20
TOO_WIDE = ("misc", "libs", "libdevel", "doc", "oldlibs", "debug")  # sections that tell little of what a package does
NUM_PROBE, NUM_VALID = 200, 100  # of each kind of gloss
NUM_SECTION_TRAIN, NUM_SECTION_VALID = 100, 50  # of each section


def read_glosses(folder: Path) -> Iterator[Document]:
    """WordNet's definitions; those of nouns of the ten kinds of manifests/glosses have labels."""
    for part in ("noun", "verb", "adj", "adv"):
        with (folder / "wordnet-base" / "usr" / "share" / "wordnet" / f"data.{part}").open(encoding="ascii") as lines:
            for line in lines:
                # The licence stands in lines that begin with spaces.
                if not line.startswith(" "):
                    offset, kind, _ = line.split(" ", 2)
                    label = KINDS.get(kind) if part == "noun" else None
                    yield Document(f"wordnet:{part}{offset}", [line.partition(" | ")[2].strip()], label)


def read_dictionary(folder: Path) -> Iterator[Document]:
    """The Collaborative International Dictionary: an entry begins where a line does, its sources stand in brackets."""
    path = folder / "dict-gcide" / "usr" / "share" / "dictd" / "gcide.dict.dz"
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        entries = re.split(r"\n(?=\S)", file.read())
    for number, entry in enumerate(entries):
        if not entry.startswith("00-database"):
            text = re.sub(r"\[[^\]]{0,24}(Webster|PJC|WordNet)[^\]]{0,16}\]|\\[^\\\n]*\\|[{}]", "", entry)
            yield Document(f"gcide:{number}", [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)])


def read_packages(folder: Path) -> Iterator[Document]:
    """What Debian's packages say of themselves; the longest one of each source has its section as label."""
    sections: dict[str, tuple[str, str]] = {}
    for fields in read_lists(folder, "*main_binary-*_Packages.lz4"):
        sections[fields["Package"]] = fields["Section"], fields.get("Source", fields["Package"]).split(" ")[0]
    known: set[str] = set()
    longest: dict[str, Document] = {}
    documents = []
    for fields in read_lists(folder, "*main_i18n_Translation-en.lz4"):
        name = fields["Package"]
        title, _, text = fields["Description-en"].partition("\n")
        lines = [f"{title}.", *(" ".join(part.split()) for part in re.split(r"\n \.\n", text))]
        # Packages of one source repeat each other's paragraphs.
        lines = [line for line in lines if line and line not in known]
        known.update(lines)
        if name in sections and lines:
            section, source = sections[name]
            document = Document(f"packages:{name}", lines, section)
            documents.append(document)
            longest[source] = max(longest.get(source, document), document, key=size_of)
    chosen = set(map(id, longest.values()))
    for document in documents:
        yield document if id(document) in chosen else Document(document.name, document.lines)


def read_lists(folder: Path, pattern: str) -> Iterator[dict[str, str]]:
    """The paragraphs of apt's lists, as fields."""
    for path in sorted((folder / "lists").glob(pattern)):
        text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], check=True, capture_output=True).stdout.decode()
        for paragraph in text.split("\n\n"):
            fields = dict(re.findall(r"^([A-Z][A-Za-z0-9-]*): (.*(?:\n .*)*)", paragraph, re.MULTILINE))
            if fields.keys() & {"Description-en", "Section"}:
                yield fields


def size_of(document: Document) -> int:
    return sum(map(len, document.lines))


def take(
    documents: Sequence[Document], labels: Sequence[str], num_valid: int, num_train: int
) -> tuple[list[Document], list[Document]]:
    """So many documents of each label, to learn from and to measure with, in random order."""
    by_label = defaultdict(list)
    for document in documents:
        if document.label in labels:
            by_label[document.label].append(document)
    train = [document for label in labels for document in by_label[label][num_valid : num_valid + num_train]]
    valid = [document for label in labels for document in by_label[label][:num_valid]]

    return shuffle(train, 1), shuffle(valid, 2)


def shuffle(documents: Sequence[Document], purpose: int) -> list[Document]:
    return [documents[index] for index in draw_permutation(SEED, purpose, Purpose.SPLIT, len(documents))]


def write_table(documents: Sequence[Document], label: str, path: Path) -> None:
    """What fine-tuning reads."""
    lines = ["\t".join(("text", label)), *(f"{' '.join(found.lines)}\t{found.label}" for found in documents)]
    path.write_text("\n".join(lines).replace('"', "'") + "\n", encoding="utf-8")


def make(source: Path, english: Path, kinds: Path, sections: Path) -> None:
    """Train, without labels, on everything but what is held out to measure with; ``probe`` are labelled glosses of it."""
    glosses, entries, packages = (
        list({tuple(found.lines): found for found in read(source) if size_of(found) >= SHORTEST}.values())
        for read in (read_glosses, read_dictionary, read_packages)
    )
    probe, valid = take(shuffle(glosses, 0), list(KINDS.values()), NUM_VALID, NUM_PROBE)
    long = [document for document in packages if size_of(document) >= 4 * SHORTEST]
    counts = Counter(document.label for document in long if document.label and document.label not in TOO_WIDE)
    chosen = [label for label, _ in counts.most_common(NUM_SECTIONS)]
    labelled, measured = take(shuffle(long, 0), chosen, NUM_SECTION_VALID, NUM_SECTION_TRAIN)
    held_out = {document.name for document in (*valid, *measured)}
    train = [document for document in (*glosses, *entries, *packages) if document.name not in held_out]
    write_documents(english, shuffle(train, 3), probe, valid, VOCABULARY_SIZE)
    for label, folder, (few, held) in (("kind", kinds, (probe, valid)), ("section", sections, (labelled, measured))):
        write_table(few, label, folder / "train.tsv")
        write_table(held, label, folder / "valid.tsv")


if __name__ == "__main__":
    run(__doc__, make, "english", "english_kinds", "english_sections", source="FOLDER")
