"""Write manifests/books: two public-domain dictionaries, as token ids.

Reads the Debian packages dict-devil and dict-jargon (apt-get download dict-devil dict-jargon; dpkg-deb -x each FOLDER).

python tools/make_books.py FOLDER [OUT]
"""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

from d2v_plugin.data.draws import Purpose, draw_permutation
from d2v_plugin.data.preparation.text import Document, train_tokenizer, write_tokens

BOOKS = ("devil", "jargon")
CHARACTERS_PER_BOOK = 375_000
VOCABULARY_SIZE = 2000
NUM_VALID = 300
NUM_PROBE = 300
SHARD_SIZE = 1 << 30
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


def write_books(folder: Path, out: Path) -> None:
    """Train on all entries but the held-out ones; probes are fitted on labelled entries of the former."""
    documents = [document for book in BOOKS for document in read_book(folder, book)]
    documents = [documents[index] for index in draw_permutation(SEED, 0, Purpose.SPLIT, len(documents))]
    valid, train = documents[:NUM_VALID], documents[NUM_VALID:]
    pieces = train_tokenizer(train, out, VOCABULARY_SIZE)
    pieces.vocabulary.save(out)
    unlabelled = [Document(document.name, document.lines) for document in train]
    for split, found in (("train", unlabelled), ("probe", train[:NUM_PROBE]), ("valid", valid)):
        print(split, write_tokens(found, out, split, pieces, SHARD_SIZE, num_documents=len(found)))


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parents[1] / "manifests" / "books"
    target.mkdir(parents=True, exist_ok=True)
    write_books(Path(sys.argv[1]), target)
