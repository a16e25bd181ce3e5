"""Make manifests/books: two public-domain dictionaries, as token ids; and manifests/book_pairs: passages of both, as text.

Reads the Debian packages dict-devil and dict-jargon (apt-get download dict-devil dict-jargon; dpkg-deb -x each FOLDER).

python -m manifests.books.make FOLDER [OUT [OUT_OF_PAIRS]]
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from d2v_plugin.data.preparation.documents import Document
from d2v_plugin.data.random import Purpose, draw_permutation
from manifests.making import SEED, run, write_documents

BOOKS = ("devil", "jargon")
CHARACTERS_PER_BOOK = 375_000
NUM_VALID = 300
NUM_PROBE = 300
NUM_TRAIN_PAIRS = 1200
NUM_VALID_PAIRS = 300
CHARACTERS_PER_PASSAGE = (80, 160)


def read_book(folder: Path, book: str) -> list[Document]:
    """Its entries of a few lines, without headwords: those would give the book away."""
    with gzip.open(folder / "usr" / "share" / "dictd" / f"{book}.dict.dz", "rt", encoding="utf-8") as file:
        text = file.read()
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    if book == "devil":
        paragraphs = [re.sub(r"^[A-Z' -]+, (n|v\.[it]|adj|adv|p\.p|pp|x|n\.pl)\. *", "", part) for part in paragraphs]
    found, size = [], 0
    for number, paragraph in enumerate(paragraphs):
        if 120 <= len(paragraph) <= 1200 and size < CHARACTERS_PER_BOOK:
            found.append(Document(f"{book}:{number}", re.split(r"(?<=[.!?]) +(?=[A-Z])", paragraph), book))
            size += len(paragraph)

    return found


def read_books(folder: Path) -> tuple[list[Document], list[Document]]:
    """The entries to train on, and those held out."""
    documents = [document for book in BOOKS for document in read_book(folder, book)]
    documents = [documents[index] for index in draw_permutation(SEED, 0, Purpose.SPLIT, len(documents))]

    return documents[NUM_VALID:], documents[:NUM_VALID]


def write_pairs(documents: Sequence[Document], path: Path, count: int) -> None:
    """Two passages of one book, of each in turn; which is it?"""
    passages = {book: [text for document in documents if document.label == book for text in cut(document)] for book in BOOKS}
    lines = ["first\tsecond\tbook"]
    for pair in range(count):
        turn, number = divmod(pair, len(BOOKS))
        texts = passages[BOOKS[number]]
        # Each passage meets another one whenever all had their turn.
        epoch, place = divmod(2 * turn, len(texts) // 2 * 2)
        first, second = draw_permutation(SEED, epoch, Purpose.ORDER, len(texts))[place : place + 2]
        lines.append(f"{texts[first]}\t{texts[second]}\t{BOOKS[number]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(path.stem, {"pairs": count, "passages": {book: len(texts) for book, texts in passages.items()}})


def cut(document: Document) -> Iterator[str]:
    """Join neighbouring sentences until they are long enough; what gets too long is left out."""
    least, most = CHARACTERS_PER_PASSAGE
    passage = ""
    for line in document.lines:
        passage = f"{passage} {line}".strip()
        if len(passage) >= least:
            if len(passage) <= most:
                yield passage
            passage = ""


def make(source: Path, books: Path, pairs: Path) -> None:
    """Write both datasets; the pairs to measure with are of entries that nothing trains on."""
    train, valid = read_books(source)
    write_documents(books, train, train[:NUM_PROBE], valid)
    write_pairs(train, pairs / "train.tsv", NUM_TRAIN_PAIRS)
    write_pairs(valid, pairs / "valid.tsv", NUM_VALID_PAIRS)


if __name__ == "__main__":
    run(__doc__, make, "books", "book_pairs", source="FOLDER")
