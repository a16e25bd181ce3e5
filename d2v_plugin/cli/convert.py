"""``fairseq2 recipe convert``: checkpoints of other programs become ours, and ours become those of Hugging Face."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2v_plugin.cli.words import PROGRAM, complain

if TYPE_CHECKING:
    from d2v_plugin.weights.directory import ModelDirectory

EXAMPLES = """\
examples:
  fairseq2 recipe convert fairseq base_libri.pt out/base_libri
  fairseq2 recipe convert huggingface data2vec-audio-base/ out/audio
  fairseq2 recipe convert to-huggingface out/audio out/audio_hf
  fairseq2 recipe convert export out/words out/words_encoder
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param words: the arguments; those of the process if None.
    :returns: the exit status: 2 if nothing was written.
    """
    args = _parse(words)

    from d2v_plugin.core.errors import CheckpointError  # after parsing: the import takes seconds

    try:
        args.run(args)
    except (CheckpointError, OSError) as ex:
        complain(str(ex))
        return 2

    return 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} recipe convert",
        description="Turn checkpoints of other programs, and ours, into directories that `d2v_plugin.load` reads; and ours into "
        "Hugging Face's.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    formats = parser.add_subparsers(required=True, metavar="FORMAT")

    fairseq = formats.add_parser(
        "fairseq",
        help="a data2vec 1.0 or 2.0 checkpoint of fairseq, pre-trained or fine-tuned",
        description="Convert a data2vec checkpoint of fairseq. Nothing that the file contains is executed.",
    )
    fairseq.add_argument("source", type=Path, metavar="IN.pt")
    fairseq.add_argument("out", type=Path, metavar="OUT")
    fairseq.add_argument(
        "--teacher-weights", action="store_true", help="make the averaged weights those of the model, where there are any"
    )
    fairseq.add_argument(
        "--original-padding",
        action="store_true",
        help="treat padding as fairseq did, where it changes the features of valid positions",
    )
    fairseq.add_argument(
        "--ignore-key",
        action="append",
        default=[],
        metavar="KEY",
        help="leave out a setting of the pre-trained model that is not known here and changes nothing; repeat for others",
    )
    fairseq.add_argument("--force", action="store_true", help="replace OUT if it is a converted checkpoint")
    fairseq.set_defaults(run=_convert_fairseq)

    hugging_face = formats.add_parser(
        "huggingface",
        help="a data2vec 1.0 model of Hugging Face's transformers",
        description="Convert a folder of `save_pretrained`; of a model with a head, what is below it.",
    )
    hugging_face.add_argument("source", type=Path, metavar="IN")
    hugging_face.add_argument("out", type=Path, metavar="OUT")
    hugging_face.add_argument(
        "--original-padding", action="store_true", help="treat padded speech as Hugging Face does, which is as fairseq did"
    )
    hugging_face.add_argument("--force", action="store_true", help="replace OUT if it is a converted checkpoint")
    hugging_face.set_defaults(run=_convert_hugging_face)

    to_hugging_face = formats.add_parser(
        "to-huggingface",
        help="the other way: a data2vec 1.0 model of this package for Hugging Face's transformers",
        description="Write a folder that `from_pretrained` loads, without the prediction head.",
    )
    to_hugging_face.add_argument("source", metavar="IN", help="whatever `d2v_plugin.load` reads, such as a run's output")
    to_hugging_face.add_argument("out", type=Path, metavar="OUT")
    to_hugging_face.add_argument("--teacher-weights", action="store_true", help="write the averaged weights, where there are any")
    to_hugging_face.set_defaults(run=_export_hugging_face)

    export = formats.add_parser(
        "export",
        help="the encoder of a run or of a converted checkpoint, without what only training needs",
        description="Write encoder and configuration, without decoders, heads, teacher and optimizer.",
    )
    export.add_argument("source", metavar="IN", help="whatever `d2v_plugin.load` reads, such as a run's output")
    export.add_argument("out", type=Path, metavar="OUT")
    export.add_argument(
        "--weights", choices=("student", "teacher"), default="student", help="which weights; the teacher's are averaged"
    )
    export.add_argument("--force", action="store_true", help="replace OUT if it is a converted checkpoint")
    export.set_defaults(run=_export)

    return parser.parse_args(words)


def _convert_fairseq(args: argparse.Namespace) -> None:
    from d2v_plugin.weights.convert.fairseq import convert_fairseq

    model = convert_fairseq(
        args.source,
        teacher_weights=args.teacher_weights,
        original_padding=args.original_padding,
        ignored_keys=args.ignore_key,
    )
    for note in model.info["source"]["notes"]:
        print(f"{PROGRAM}: note: {note}", file=sys.stderr)
    _write(args, model)


def _convert_hugging_face(args: argparse.Namespace) -> None:
    from d2v_plugin.weights.convert.hugging_face import convert_hugging_face
    from d2v_plugin.weights.directory import ModelDirectory

    _silence_transformers()
    config, state = convert_hugging_face(args.source)
    config.original_padding = args.original_padding
    info = {"source": {"format": "huggingface", "folder": args.source.name}}
    _write(args, ModelDirectory(config=config, student=state, info=info))


def _export_hugging_face(args: argparse.Namespace) -> None:
    from d2v_plugin.core.errors import CheckpointError
    from d2v_plugin.models.data2vec1.base import Data2Vec1Model
    from d2v_plugin.weights.convert.hugging_face import export_hugging_face
    from d2v_plugin.weights.loading import load

    _silence_transformers()
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise CheckpointError(f"{args.out} exists already; choose another place.")
    model = load(args.source, weights="teacher" if args.teacher_weights else "student")
    if not isinstance(model, Data2Vec1Model):
        raise CheckpointError(f"{args.source} is data2vec 2.0, which Hugging Face's transformers does not have.")
    export_hugging_face(model, args.out)
    for file in sorted(args.out.iterdir()):
        print(file)


def _export(args: argparse.Namespace) -> None:
    from d2v_plugin.weights.export import export_encoder

    _write(args, export_encoder(args.source, args.weights))


def _silence_transformers() -> None:
    """It prints whole configurations."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _write(args: argparse.Namespace, model: ModelDirectory) -> None:
    from d2v_plugin.weights.directory import write_directory

    for file in write_directory(args.out, model, force=args.force):
        print(file)
    num_parameters = sum(tensor.numel() for tensor in model.student.values())
    print(f"{num_parameters:,} parameters, {', '.join(modality.value for modality in model.config.frontends)}")
