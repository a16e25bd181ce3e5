"""``fairseq2 recipe convert``: checkpoints of other programs become ours, and ours become those of Hugging Face."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2v_plugin.cli.words import PROGRAM, complain

if TYPE_CHECKING:
    from d2v_plugin.weights.convert.transfer import Foreign
    from d2v_plugin.weights.directory import ModelDirectory
    from d2v_plugin.weights.sources import Weights

    Formats = argparse._SubParsersAction[argparse.ArgumentParser]

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

    # After parsing: the imports take seconds.
    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.core.errors import CheckpointError

    try:
        args.run(args)
    except (CheckpointError, RecipeError, OSError) as ex:
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
    for add in (_add_fairseq, _add_hugging_face, _add_fairseq2, _add_to_hugging_face, _add_export):
        format = add(formats)
        format.add_argument("out", type=Path, metavar="OUT")
        format.add_argument("--force", action="store_true", help="replace OUT if an earlier conversion wrote it")

    return parser.parse_args(words)


def _add_fairseq(formats: Formats) -> argparse.ArgumentParser:
    fairseq = formats.add_parser(
        "fairseq",
        help="a checkpoint of fairseq: data2vec, wav2vec 2.0, HuBERT or RoBERTa, pre-trained or fine-tuned",
        description="Convert a checkpoint of fairseq, or a file of data2vec 1.0's, BEiT's or MAE's own code for images. Nothing "
        "that the file contains is executed.",
    )
    fairseq.add_argument("source", type=Path, metavar="IN.pt")
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
    fairseq.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="names of the outputs of a fine-tuned model, where its file has none: fairseq's dict.ltr.txt, or one on each line",
    )
    fairseq.set_defaults(run=_convert_fairseq)

    return fairseq


def _add_hugging_face(formats: Formats) -> argparse.ArgumentParser:
    hugging_face = formats.add_parser(
        "huggingface",
        help="a model of Hugging Face's transformers: data2vec 1.0, wav2vec2, hubert, roberta, bert, vit, vit_mae, beit or eat",
        description="Convert a folder of `save_pretrained`; data2vec 1.0 keeps its head and how inputs are read.",
    )
    hugging_face.add_argument("source", type=Path, metavar="IN")
    hugging_face.add_argument(
        "--original-padding", action="store_true", help="treat padded speech as Hugging Face does, which is as fairseq did"
    )
    hugging_face.add_argument("--no-head", action="store_true", help="of a fine-tuned model what is below the head")
    hugging_face.set_defaults(run=_convert_hugging_face)

    return hugging_face


def _add_fairseq2(formats: Formats) -> argparse.ArgumentParser:
    fairseq2 = formats.add_parser(
        "fairseq2",
        help="a wav2vec 2.0 model of fairseq2",
        description="Convert the last checkpoint of a run of fairseq2, one of its checkpoints, or a model that fairseq2 knows.",
    )
    fairseq2.add_argument("source", metavar="IN", help="the output directory of a run, a step_N, or a name")
    fairseq2.set_defaults(run=_convert_fairseq2)

    return fairseq2


def _add_to_hugging_face(formats: Formats) -> argparse.ArgumentParser:
    to_hugging_face = formats.add_parser(
        "to-huggingface",
        help="the other way: a model of this package for Hugging Face's transformers",
        description="Write a folder that `from_pretrained` loads, without what serves pre-training alone; what it computes is "
        "compared with our own model. `fairseq2 recipe export` does the same, and knows extensions.",
    )
    to_hugging_face.add_argument("source", metavar="IN", help="whatever `d2v_plugin.load` reads, such as a run's output")
    to_hugging_face.add_argument("--teacher-weights", action="store_true", help="write the averaged weights, where there are any")
    to_hugging_face.add_argument("--no-head", action="store_true", help="of a fine-tuned model the encoder alone")
    to_hugging_face.set_defaults(run=_export_hugging_face)

    return to_hugging_face


def _add_export(formats: Formats) -> argparse.ArgumentParser:
    export = formats.add_parser(
        "export",
        help="the model of a run or of a converted checkpoint, without what only training needs",
        description="Write encoder, head and configuration, without decoders, teacher and optimizer. `fairseq2 recipe export` "
        "with `format=d2v_plugin` does the same, and knows extensions.",
    )
    export.add_argument("source", metavar="IN", help="whatever `d2v_plugin.load` reads, such as a run's output")
    export.add_argument(
        "--weights", choices=("student", "teacher"), default="student", help="which weights; the teacher's are averaged"
    )
    export.add_argument("--no-head", action="store_true", help="of a fine-tuned model the encoder alone")
    export.set_defaults(run=_export)

    return export


def _convert_fairseq(args: argparse.Namespace) -> None:
    from d2v_plugin.weights.convert.fairseq import convert_fairseq

    model = convert_fairseq(
        args.source,
        teacher_weights=args.teacher_weights,
        original_padding=args.original_padding,
        ignored_keys=args.ignore_key,
        labels=args.labels,
    )
    for note in model.info["source"]["notes"]:
        print(f"{PROGRAM}: note: {note}", file=sys.stderr)
    _write(args, model)


def _convert_hugging_face(args: argparse.Namespace) -> None:
    from d2v_plugin.weights.adoption import read_hugging_face
    from d2v_plugin.weights.convert.hugging_face import convert_hugging_face, is_data2vec1

    _silence_transformers()
    if not is_data2vec1(args.source):
        foreign = read_hugging_face(args.source)
        foreign.config.original_padding = args.original_padding
        _write_foreign(args, foreign, {"format": "huggingface", "folder": args.source.name})
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = convert_hugging_face(args.source, head=not args.no_head, scratch=Path(scratch))
        model.config.original_padding = args.original_padding
        for note in model.info["source"]["notes"]:
            print(f"{PROGRAM}: note: {note}", file=sys.stderr)
        _write(args, model)


def _convert_fairseq2(args: argparse.Namespace) -> None:
    from d2v_plugin.weights.convert.fairseq2 import adopt

    _write_foreign(args, adopt(args.source), {"format": "fairseq2", "checkpoint": args.source})


def _export_hugging_face(args: argparse.Namespace) -> None:
    _silence_transformers()
    _export_as(args, "huggingface", "teacher" if args.teacher_weights else "student")


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


def _write_foreign(args: argparse.Namespace, foreign: Foreign, source: dict[str, object]) -> None:
    from d2v_plugin.weights.directory import ModelDirectory

    info = {"source": {**source, "transfer": foreign.transfer.describe()}}
    _write(args, ModelDirectory(config=foreign.config, student=foreign.state, info=info))


def _write(args: argparse.Namespace, model: ModelDirectory) -> None:
    from d2v_plugin.weights.convert.transfer import format_table
    from d2v_plugin.weights.directory import write_directory

    for file in write_directory(args.out, model, force=args.force):
        print(file)
    for line in format_table(model.info["source"].get("transfer", {})):
        print(line)
    num_parameters = sum(tensor.numel() for tensor in model.student.values())
    print(f"{num_parameters:,} parameters, {', '.join(modality.value for modality in model.config.frontends)}")
