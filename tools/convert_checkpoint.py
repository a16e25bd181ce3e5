"""Turn checkpoints of other programs, and ours, into directories that ``d2v_plugin.load`` reads; and ours into Hugging Face's.

python tools/convert_checkpoint.py fairseq IN.pt OUT/
python tools/convert_checkpoint.py huggingface IN/ OUT/
python tools/convert_checkpoint.py to-huggingface IN/ OUT/
python tools/convert_checkpoint.py export RUN/ OUT/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d2v_plugin.weights.directory import ModelDirectory
    from d2v_plugin.weights.sources import Weights


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param words: the arguments; those of the process if None.
    :returns: the exit status: 2 if nothing was written.
    """
    args = _parse(words)

    import d2v_plugin  # noqa: F401  # after parsing: the imports take seconds

    # isort: split
    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.core.errors import CheckpointError

    try:
        args.run(args)
    except (CheckpointError, RecipeError, OSError) as ex:
        print(f"convert_checkpoint: error: {ex}", file=sys.stderr)
        return 2

    return 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="convert_checkpoint", description=(__doc__ or "").partition("\n")[0])
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
        help="the other way: a model of this package for Hugging Face's transformers",
        description="Write a folder that `from_pretrained` loads, without what serves pre-training alone; what it computes is "
        "compared with our own model. `fairseq2 recipe export` does the same, and knows extensions.",
    )
    to_hugging_face.add_argument("source", metavar="IN", help="whatever `d2v_plugin.load` reads, such as a run's output")
    to_hugging_face.add_argument("out", type=Path, metavar="OUT")
    to_hugging_face.add_argument("--teacher-weights", action="store_true", help="write the averaged weights, where there are any")
    to_hugging_face.add_argument("--no-head", action="store_true", help="of a fine-tuned model the encoder alone")
    to_hugging_face.add_argument("--force", action="store_true", help="replace OUT if an earlier export wrote it")
    to_hugging_face.set_defaults(run=_export_hugging_face)

    export = formats.add_parser(
        "export",
        help="the model of a run or of a converted checkpoint, without what only training needs",
        description="Write encoder, head and configuration, without decoders, teacher and optimizer. `fairseq2 recipe export` "
        "with `format=d2v_plugin` does the same, and knows extensions.",
    )
    export.add_argument("source", metavar="IN", help="whatever `d2v_plugin.load` reads, such as a run's output")
    export.add_argument("out", type=Path, metavar="OUT")
    export.add_argument(
        "--weights", choices=("student", "teacher"), default="student", help="which weights; the teacher's are averaged"
    )
    export.add_argument("--no-head", action="store_true", help="of a fine-tuned model the encoder alone")
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
        print(f"convert_checkpoint: note: {note}", file=sys.stderr)
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
    from d2v_plugin.exporting.export import check_place
    from d2v_plugin.models.data2vec1.base import Data2Vec1Model
    from d2v_plugin.models.data2vec2.config import Data2VecConfig
    from d2v_plugin.weights.convert.hugging_face import export_hugging_face
    from d2v_plugin.weights.loading import load
    from d2v_plugin.weights.sources import find_source

    check_place(args.out, force=args.force)
    _silence_transformers()
    weights: Weights = "teacher" if args.teacher_weights else "student"
    if isinstance(find_source(args.source).config, Data2VecConfig):
        _export_as(args, "huggingface", weights)
        return
    model = load(args.source, weights=weights)
    assert isinstance(model, Data2Vec1Model)
    export_hugging_face(model, args.out)
    for file in sorted(args.out.iterdir()):
        print(file)


def _export(args: argparse.Namespace) -> None:
    _export_as(args, "d2v_plugin", args.weights)


def _export_as(args: argparse.Namespace, format: str, weights: Weights) -> None:
    from d2v_plugin.exporting.export import export_model
    from d2v_plugin.verbs.extensions import open_library

    export = export_model(
        args.source,
        args.out,
        format=format,
        resolver=open_library(),
        weights=weights,
        head=not args.no_head,
        force=args.force,
    )
    print("\n".join(export.describe()))


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


if __name__ == "__main__":
    sys.exit(main())
