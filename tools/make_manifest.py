"""Make the manifests that training reads, or look at one.

python tools/make_manifest.py image photos OUT --valid-percent 5 --labels folders --shard-size 1G
python tools/make_manifest.py audio recordings more_recordings OUT --segment-seconds 20
python tools/make_manifest.py text wiki.txt news.jsonl.gz OUT --vocabulary-size 50000
python tools/make_manifest.py audio recordings OUT --transcripts transcripts.tsv
python tools/make_manifest.py pieces OUT --vocabulary-size 500
python tools/make_manifest.py inspect OUT/train.tsv
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.preparation.audio import RECEPTIVE_FIELD, prepare_audio
from d2v_plugin.data.preparation.common import parse_size
from d2v_plugin.data.preparation.image import prepare_images
from d2v_plugin.data.preparation.inspection import inspect_manifest
from d2v_plugin.data.preparation.text import prepare_text
from d2v_plugin.data.preparation.transcripts import train_pieces


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("audio", "image", "text"):
        made = kinds.add_parser(kind, help=f"make manifests of {kind}")
        made.add_argument("sources", nargs="+", type=Path, metavar="SRC", help="folders (text: or files) to read")
        made.add_argument("out", type=Path, metavar="OUT", help="folder to write train.tsv, valid.tsv and report.json to")
        made.add_argument("--valid-percent", type=float, default=1.0, help="share of files to hold out (default: 1)")
        made.add_argument("--seed", type=int, default=42, help="another seed holds out other files (default: 42)")
        made.add_argument("--shard-size", help="pack into archives of this many bytes, such as 1G")
        made.add_argument("--workers", type=int, help="threads (default: one per processor)")
        made.add_argument("--check-duplicates", action="store_true", help="report equal contents in both splits")
        if kind != "text":
            made.add_argument("--reread", action="store_true", help="also read files that have not changed since the last run")
            made.add_argument("--labels", help="`folders` (the first folder below SRC is the class), or a file of path<TAB>label")
    audio, text = kinds.choices["audio"], kinds.choices["text"]
    audio.add_argument("--sample-rate", type=int, default=16_000, help="rate of the model; others are noted in a column")
    audio.add_argument("--min-samples", type=int, default=RECEPTIVE_FIELD, help="drop what is shorter (default: %(default)s)")
    audio.add_argument("--transcripts", help="a file of path<TAB>transcript, for speech recognition")
    audio.add_argument("--segment-seconds", type=float, help="cut longer recordings into segments of at most this")
    audio.add_argument("--fairseq", action="store_true", help="write nothing fairseq could not read")
    text.add_argument("--tokenizer", type=Path, help="a SentencePiece model (default: train one)")
    text.add_argument("--vocabulary-size", type=int, default=32_000, help="of the model to train, special ids included")
    pieces = kinds.add_parser("pieces", help="train a SentencePiece model on the transcripts of recordings")
    pieces.add_argument("manifests", type=Path, metavar="MANIFESTS", help="folder with train.tsv; the model is written there")
    pieces.add_argument("--vocabulary-size", type=int, default=500, help="number of pieces (default: 500)")
    inspect = kinds.add_parser("inspect", help="print totals, a histogram and a few rows of a manifest")
    inspect.add_argument("manifest", type=Path, metavar="MANIFEST")

    return parser


def make(arguments: argparse.Namespace) -> object:
    """Do what was asked for; what is returned is worth printing."""
    if arguments.kind == "inspect":
        return inspect_manifest(arguments.manifest)
    if arguments.kind == "pieces":
        return train_pieces(arguments.manifests, arguments.vocabulary_size)
    common = {name: getattr(arguments, name) for name in ("valid_percent", "seed", "workers", "check_duplicates")}
    shard_size = parse_size(arguments.shard_size) if arguments.shard_size else None
    if arguments.kind == "text":
        return prepare_text(
            arguments.sources,
            arguments.out,
            shard_size=shard_size or parse_size("1G"),
            tokenizer=arguments.tokenizer,
            vocabulary_size=arguments.vocabulary_size,
            **common,
        )
    common |= {"labels": arguments.labels, "shard_size": shard_size, "reread": arguments.reread}
    if arguments.kind == "image":
        return prepare_images(arguments.sources, arguments.out, **common)
    if arguments.fairseq and (arguments.labels or arguments.transcripts or arguments.segment_seconds or shard_size):
        raise RecipeError("`--fairseq` cannot be combined with labels, transcripts, `--segment-seconds` or `--shard-size`.")
    if arguments.transcripts and (arguments.labels or arguments.segment_seconds):
        raise RecipeError("`--transcripts` cannot be combined with `--labels` or `--segment-seconds`.")

    return prepare_audio(
        arguments.sources,
        arguments.out,
        transcripts=arguments.transcripts,
        sample_rate=arguments.sample_rate,
        segment_seconds=arguments.segment_seconds,
        fairseq=arguments.fairseq,
        min_samples=arguments.min_samples,
        **common,
    )


def check_numbers(arguments: argparse.Namespace) -> None:
    """:raises RecipeError: a number is out of its range."""
    ranges = {
        "valid_percent": (0.0, 100.0),
        "workers": (1, 1024),
        "vocabulary_size": (1, 1 << 24),
        "sample_rate": (1, 10_000_000),
        "min_samples": (0, 1 << 40),
        "segment_seconds": (1e-6, 1e9),
    }
    for name, (low, high) in ranges.items():
        value = getattr(arguments, name, None)
        if value is not None and not low <= value <= high:
            raise RecipeError(f"`--{name.replace('_', '-')}` must be from {low:g} to {high:,.0f}, but is {value}.")


def describe(error: Exception) -> str:
    """One line about an error that nobody has foreseen."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def main(arguments: Sequence[str] | None = None) -> int:
    """:returns: the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal may know less than Unicode
    parsed = make_parser().parse_args(arguments)
    try:
        check_numbers(parsed)
        print(make(parsed), flush=True)
    except BrokenPipeError:  # such as `| head`; nothing is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2

    return 0


if __name__ == "__main__":
    sys.exit(main())
