"""Write manifests/books: two public-domain dictionaries, as token ids; and manifests/book_pairs: passages of both, as text.

Reads the Debian packages dict-devil and dict-jargon (apt-get download dict-devil dict-jargon; dpkg-deb -x each FOLDER).

python tools/make_books.py FOLDER [OUT [OUT_OF_PAIRS]]
"""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from d2v_plugin.data.preparation.text import Document, train_tokenizer, write_tokens
from d2v_plugin.data.random import Purpose, draw_permutation

BOOKS = ("devil", "jargon")
CHARACTERS_PER_BOOK = 375_000
VOCABULARY_SIZE = 2000
NUM_VALID = 300
NUM_PROBE = 300
SHARD_SIZE = 1 << 30
NUM_TRAIN_PAIRS = 1200
NUM_VALID_PAIRS = 300
CHARACTERS_PER_PASSAGE = (80, 160)
SEED = 0


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


def write_books(train: Sequence[Document], probe: Sequence[Document], valid: Sequence[Document], out: Path) -> None:
    """Train, without labels, on all entries but the held-out ones; probes are fitted on labelled entries of the former."""
    pieces = train_tokenizer(train, out, VOCABULARY_SIZE)
    pieces.vocabulary.save(out)
    unlabelled = [Document(document.name, document.lines) for document in train]
    for split, found in (("train", unlabelled), ("probe", probe), ("valid", valid)):
        print(split, write_tokens(found, out, split, pieces, SHARD_SIZE, num_documents=len(found)))


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


if __name__ == "__main__":
    manifests = Path(__file__).parents[1] / "manifests"
    books = Path(sys.argv[2]) if len(sys.argv) > 2 else manifests / "books"
    pairs = Path(sys.argv[3]) if len(sys.argv) > 3 else manifests / "book_pairs"
    for target in (books, pairs):
        target.mkdir(parents=True, exist_ok=True)
    train, valid = read_books(Path(sys.argv[1]))
    write_books(train, train[:NUM_PROBE], valid, books)
    write_pairs(train, pairs / "train.tsv", NUM_TRAIN_PAIRS)
    write_pairs(valid, pairs / "valid.tsv", NUM_VALID_PAIRS)
