"""ONNX, through ``torch.export``: a graph for onnxruntime, of any number of samples and any length."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Final

import torch

from d2v_plugin.exporting.comparison import Differences
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.exporting.metadata import describe_use
from d2v_plugin.exporting.packages import need
from d2v_plugin.exporting.program import Program, arguments_of, compare_program, export_program

ONNX_FILE: Final = "model.onnx"

_PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")


@torch.no_grad()
def export_onnx(exportable: Exportable, folder: Path) -> Differences:
    """Write ``model.onnx`` with its metadata, run it by onnxruntime and compare it at another batch size and length.

    :raises CheckpointError: a package is missing.
    """
    need("onnx", *_PACKAGES)
    import onnxruntime

    program = Program(exportable)
    exported = export_program(program)
    # It warns of operators of torchvision, which no model here uses.
    logging.getLogger("torch.onnx._internal.exporter._schemas").setLevel(logging.ERROR)
    onnx = torch.onnx.export(
        exported, dynamo=True, verbose=False, input_names=program.input_names, output_names=program.output_names
    )
    assert onnx is not None
    for name, value in describe_use(exportable).items():
        onnx.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    folder.mkdir()
    onnx.save(folder / ONNX_FILE)

    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    inputs = {name: value.numpy() for name, value in zip(program.input_names, arguments_of(program), strict=True)}
    outputs = session.run(program.output_names, inputs)

    return compare_program(program, {name: torch.from_numpy(x) for name, x in zip(program.output_names, outputs, strict=True)})
