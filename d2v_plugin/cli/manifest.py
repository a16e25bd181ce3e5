"""``fairseq2 recipe manifest``: folders of sound, pictures and text become the manifests that training reads."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from d2v_plugin.cli.words import PROGRAM, complain
from d2v_plugin.core.remote import RemotePath, place
from d2v_plugin.core.store import is_url

if TYPE_CHECKING:
    from d2v_plugin.data.preparation.splitting import SplitOptions

DESCRIPTION = """\
Make the manifests that training reads, or look at one. manifests/README.md describes them.
"""

EXAMPLES = """\
examples:
  fairseq2 recipe manifest image photos OUT --valid-percent 5 --labels folders --shard-size 1G
  fairseq2 recipe manifest image train=photos/train valid=photos/val OUT --labels folders
  fairseq2 recipe manifest audio recordings more_recordings OUT --split-by folder --segment-seconds 20
  fairseq2 recipe manifest audio recordings OUT --transcripts transcripts.tsv --test-percent 5
  fairseq2 recipe manifest image s3://bucket/shards OUT --labels cls
  fairseq2 recipe manifest text wiki.txt news.jsonl.gz OUT --vocabulary-size 50000
  fairseq2 recipe manifest import train=data/train_clean_100 valid=data/dev_clean OUT
  fairseq2 recipe manifest pieces OUT --vocabulary-size 500
  fairseq2 recipe manifest inspect OUT/train.tsv
"""

RANGES = {
    "valid_percent": (0.0, 100.0),
    "probe_percent": (0.0, 100.0),
    "test_percent": (0.0, 100.0),
    "workers": (1, 1024),
    "vocabulary_size": (1, 1 << 24),
    "sample_rate": (1, 10_000_000),
    "channels": (1, 1 << 16),
    "min_samples": (0, 1 << 40),
    "segment_seconds": (1e-6, 1e9),
}

IMPORTED = ("kaldi", "nemo", "lhotse", "timit", "librispeech", "fairseq", "parquet")


class UsageError(Exception):
    """A mistake in the options, in a sentence."""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param words: the arguments; those of the process if None.
    :returns: the exit status: 2 if nothing was written.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal may know less than Unicode
    args = make_parser().parse_args(words)
    try:
        check_numbers(args)
        with writing_to(args):
            print(make(args), flush=True)
    except BrokenPipeError:  # such as `| head`; nothing is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as ex:
        complain(describe(ex))
        return 2

    return 0


def make_parser() -> argparse.ArgumentParser:
    """The options; that of ``text`` and ``audio`` share most."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} recipe manifest",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind in ("audio", "image", "text"):
        made = kinds.add_parser(kind, help=f"make manifests of {kind}")
        what = "folders or files" if kind == "text" else "folders or tar archives"
        made.add_argument("sources", nargs="+", metavar="SRC", help=f"{what} to read; SPLIT=SRC for splits that are given")
        made.add_argument("out", type=Path, metavar="OUT", help="folder to write train.tsv, valid.tsv, … and report.json to")
        _add_splitting(made)
        made.add_argument("--shard-size", help="pack into archives of this many bytes, such as 1G")
        made.add_argument("--workers", type=int, help="threads (default: one per processor)")
        made.add_argument("--check-duplicates", action="store_true", help="report equal contents in different splits")
        if kind != "text":
            made.add_argument("--reread", action="store_true", help="also read files that have not changed since the last run")
            made.add_argument(
                "--labels",
                help="`folders` (the first folder below SRC is the class), a file of path<TAB>label, or what lies beside each "
                "sample of a tar archive: `cls`, `txt` or `json:FIELD`",
            )
    imported = kinds.add_parser("import", help="make manifests of what Kaldi, NeMo, Lhotse, fairseq and others wrote")
    imported.add_argument("sources", nargs="+", metavar="SRC", help="file or folder of another toolkit; SPLIT=SRC for its split")
    imported.add_argument("out", type=Path, metavar="OUT", help="folder to write train.tsv, valid.tsv, … and report.json to")
    _add_splitting(imported)
    imported.add_argument("--kind", dest="toolkit", choices=IMPORTED, help="what the sources are (default: found from the files)")
    imported.add_argument("--labels", metavar="FIELD", help="what becomes the label, or `none` (default: what is said, if known)")
    imported.add_argument("--column", help="of tables: the one of pictures, recordings or texts (default: the only one)")
    imported.add_argument("--shard-size", help="of tables: size of the archives (default: 1G)")
    imported.add_argument("--workers", type=int, help="threads (default: one per processor)")
    imported.add_argument("--reread", action="store_true", help="also read files that have not changed since the last run")
    audio, text = kinds.choices["audio"], kinds.choices["text"]
    channels = "as which images are read (default: 3; 1 = grey): report.json has their means and deviations"
    kinds.choices["image"].add_argument("--channels", type=int, default=3, help=channels)
    for made in (audio, imported):
        made.add_argument("--sample-rate", type=int, default=16_000, help="rate of the model; others are noted in a column")
        made.add_argument("--min-samples", type=int, help="drop what is shorter (default: 400, what makes the first frame)")
    audio.add_argument("--transcripts", help="a file of path<TAB>transcript, or as `--labels` in tar archives")
    audio.add_argument("--segment-seconds", type=float, help="cut longer recordings into segments of at most this")
    audio.add_argument("--fairseq", action="store_true", help="write nothing fairseq could not read")
    for made in (text, imported):
        made.add_argument("--tokenizer", type=Path, help="a SentencePiece model for text (default: train one)")
        made.add_argument("--vocabulary-size", type=int, default=32_000, help="of the model to train, special ids included")
    pieces = kinds.add_parser("pieces", help="train a SentencePiece model on the transcripts of recordings")
    pieces.add_argument("manifests", type=Path, metavar="MANIFESTS", help="folder with train.tsv; the model is written there")
    pieces.add_argument("--vocabulary-size", type=int, default=500, help="number of pieces (default: 500)")
    inspect = kinds.add_parser("inspect", help="print totals, a histogram and a few rows of a manifest")
    inspect.add_argument("manifest", type=Path, metavar="MANIFEST")
    inspect.add_argument(
        "--log-mel",
        action="store_true",
        help="read a hundred recordings for `log_mel_mean` and `log_mel_std` of models of spectrograms",
    )

    return parser


def _add_splitting(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("splits")
    group.add_argument("--valid-percent", type=float, help="share to validate with (default: 1; 0 where splits are given)")
    group.add_argument("--probe-percent", type=float, default=0.0, help="share to fit probes on (default: 0)")
    group.add_argument("--test-percent", type=float, default=0.0, help="share for test.tsv (default: 0)")
    group.add_argument("--seed", type=int, default=42, help="another seed holds out other files (default: 42)")
    group.add_argument(
        "--split-by",
        metavar="GROUP",
        help="never divide a group: `folder` (the first one below SRC), `file` (of text), `regex:EXPRESSION` in the path, "
        "`table:FILE` of path<TAB>group, or `field:NAME` (of JSON lines)",
    )
    group.add_argument(
        "--split-list",
        action="append",
        default=[],
        metavar="LIST",
        help="splits that are given: a file of path<TAB>split; or SPLIT=FILE with a path on each line, repeated, where all other "
        "files are for training",
    )


@contextmanager
def writing_to(args: argparse.Namespace) -> Iterator[None]:
    """Let OUT be on a store: it is written to a local folder first."""
    folder = next((name for name in ("out", "manifests") if name in args), None)
    target = None if folder is None else place(getattr(args, folder))
    if folder is None or not isinstance(target, RemotePath):
        yield
        return

    from d2v_plugin.cli.staging import staged

    with staged(target) as local:
        setattr(args, folder, local)
        yield


def check_numbers(args: argparse.Namespace) -> None:
    """:raises UsageError: a number is out of its range."""
    for name, (low, high) in RANGES.items():
        value = getattr(args, name, None)
        if value is not None and not low <= value <= high:
            raise UsageError(f"`--{name.replace('_', '-')}` must be from {low:g} to {high:,.0f}, but is {value}.")


def make(args: argparse.Namespace) -> object:
    """Do what was asked for; what is returned is worth printing."""
    # Here, since the imports take seconds.
    from d2v_plugin.data.preparation import audio
    from d2v_plugin.data.preparation.common import parse_size
    from d2v_plugin.data.preparation.image import prepare_images
    from d2v_plugin.data.preparation.importing.prepare import import_manifests
    from d2v_plugin.data.preparation.inspection import inspect_manifest
    from d2v_plugin.data.preparation.text import prepare_text
    from d2v_plugin.data.preparation.transcripts import train_pieces

    if args.kind == "inspect":
        return inspect_manifest(place(args.manifest), with_log_mel=args.log_mel)
    if args.kind == "pieces":
        return train_pieces(args.manifests, args.vocabulary_size)
    sources, splitting = _read_splitting(args)
    shard_size = None if args.shard_size is None else parse_size(args.shard_size)
    min_samples = getattr(args, "min_samples", None)
    min_samples = audio.RECEPTIVE_FIELD if min_samples is None else min_samples
    if args.kind == "import":
        return import_manifests(
            sources,
            args.out,
            kind=args.toolkit,
            labels=args.labels,
            column=args.column,
            sample_rate=args.sample_rate,
            min_samples=min_samples,
            tokenizer=args.tokenizer,
            vocabulary_size=args.vocabulary_size,
            shard_size=shard_size,
            workers=args.workers,
            reread=args.reread,
            **splitting,
        )
    common = {"workers": args.workers, "check_duplicates": args.check_duplicates, **splitting}
    if args.kind == "text":
        return prepare_text(
            sources,
            args.out,
            shard_size=shard_size or parse_size("1G"),
            tokenizer=args.tokenizer,
            vocabulary_size=args.vocabulary_size,
            **common,
        )
    common |= {"labels": args.labels, "shard_size": shard_size, "reread": args.reread}
    if args.kind == "image":
        return prepare_images(sources, args.out, num_channels=args.channels, **common)
    if args.fairseq and (args.labels or args.transcripts or args.segment_seconds or shard_size):
        raise UsageError("`--fairseq` cannot be combined with labels, transcripts, `--segment-seconds` or `--shard-size`.")
    if args.transcripts and (args.labels or args.segment_seconds):
        raise UsageError("`--transcripts` cannot be combined with `--labels` or `--segment-seconds`.")

    return audio.prepare_audio(
        sources,
        args.out,
        transcripts=args.transcripts,
        sample_rate=args.sample_rate,
        segment_seconds=args.segment_seconds,
        fairseq=args.fairseq,
        min_samples=min_samples,
        **common,
    )


def _read_splitting(args: argparse.Namespace) -> tuple[list[Path], SplitOptions]:
    """The sources, and how they are split.

    :raises UsageError: some sources have a split and others have none, or one has two.
    """
    sources: list[Path] = []
    root_splits: dict[Path, str] = {}
    for word in args.sources:
        found = None if is_url(word) or Path(word).exists() else re.fullmatch(r"([A-Za-z0-9][\w-]*)=(.+)", word)
        path = place(word if found is None else found[2])
        sources.append(path)
        if found is not None and root_splits.setdefault(path.absolute(), found[1]) != found[1]:
            raise UsageError(f"{path} is given for the splits `{root_splits[path.absolute()]}` and `{found[1]}`.")
    without = [str(path) for path in sources if path.absolute() not in root_splits]
    if root_splits and without:
        raise UsageError(f"{without[0]} has no split, but other sources have; write for example `train={without[0]}`.")

    return sources, {
        "valid_percent": args.valid_percent,
        "probe_percent": args.probe_percent,
        "test_percent": args.test_percent,
        "seed": args.seed,
        "split_by": args.split_by,
        "split_lists": args.split_list,
        "root_splits": root_splits,
    }


def describe(error: Exception) -> str:
    """Say in a line what went wrong, also where nobody has foreseen it."""
    from fairseq2.recipe.error import RecipeError

    if isinstance(error, RecipeError | UsageError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror

    return f"{type(error).__name__}: {' '.join(str(error).split())}"
