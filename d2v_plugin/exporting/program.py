"""A model as a program of tensors alone, by ``torch.export``: what ONNX and archives of PyTorch are made of."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.criteria.supervised.tagging import AudioTaggingCriterion
from d2v_plugin.exporting.comparison import Differences, draw_batch, largest_difference
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.models.families import AnyModel
from d2v_plugin.weights.state import build_skeleton, fill_skeleton

INPUTS: Final = "inputs"
PADDING: Final = "padding_mask"
FEATURES: Final = "features"
FRAME_PADDING: Final = "frame_padding_mask"
LOGITS: Final = "logits"
PROBABILITIES: Final = "probabilities"


class Program(nn.Module):
    """Encoder and head, from tensors to tensors.

    Inputs are ``inputs`` and, except for images, ``padding_mask`` (True = padding, all False = none). Outputs are ``features``
    (N, S, D), of sound ``frame_padding_mask`` (N, S), and of a fine-tuned model its ``logits`` (N, C), or (N, S, C) of CTC; of
    tags their ``probabilities`` (N, C).
    """

    def __init__(self, exportable: Exportable) -> None:
        super().__init__()
        self.model = drop_prediction(exportable.model)
        self.criterion = exportable.criterion
        self.modality = exportable.modality

    @property
    def input_names(self) -> list[str]:
        """Names of the arguments."""
        return [INPUTS] if self.modality is Modality.IMAGE else [INPUTS, PADDING]

    @property
    def output_names(self) -> list[str]:
        """Names of the results."""
        names = [FEATURES, FRAME_PADDING] if self.modality is Modality.AUDIO else [FEATURES]
        if self.criterion is not None:
            names.append(PROBABILITIES if isinstance(self.criterion, AudioTaggingCriterion) else LOGITS)
        return names

    @override
    def forward(self, inputs: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        features = self.model.extract_features(inputs, padding_mask, modality=self.modality)
        outputs = [features.x]
        if self.modality is Modality.AUDIO:
            # Of its own, whatever else is made of it. Models that take padding for sound have none.
            found = features.padding_mask
            outputs.append(features.x.new_zeros(features.x.shape[:2], dtype=torch.bool) if found is None else found.clone())
        if self.criterion is not None:
            logits = self.criterion.apply_head(features)
            if isinstance(self.criterion, AudioTaggingCriterion):
                logits = self.criterion.pool(logits, features.padding_mask).exp()
            outputs.append(logits)

        return tuple(outputs)


def drop_prediction(model: AnyModel) -> AnyModel:
    """A copy of a model without what serves pre-training alone, which would fill a file for nothing."""
    config, state = model.config.without_prediction(), model.state_dict()
    copied = build_skeleton(config, num_tensors=len(state))

    return fill_skeleton(copied, {name: state[name] for name in copied.state_dict()}, device="cpu")


@torch.no_grad()
def export_program(program: Program) -> ExportedProgram:
    """Export for any number of samples, and any length of sequences; images have the size of the model.

    Sequences must have two frames or tokens at least: with one, PyTorch would make a program for one alone.
    """
    inputs, padding_mask = draw_example(program)
    sizes: dict[int, Any] = {0: Dim.DYNAMIC}
    if program.modality is not Modality.IMAGE:
        sizes[1] = Dim.DYNAMIC
    arguments = (inputs,) if padding_mask is None else (inputs, padding_mask)
    shapes = {name: sizes for name in program.input_names}
    # What is computed once and kept becomes a constant: it must not be the tracer that computes it.
    program(*arguments)

    return torch.export.export(program, arguments, dynamic_shapes=shapes, strict=False)


def draw_example(program: Program) -> tuple[Tensor, Tensor | None]:
    """Inputs to export with: of another number and length than those that are compared."""
    batch = draw_batch(program.model, program.modality)
    if batch.padding_mask is None:
        return batch.inputs.repeat(2, 1, 1, 1)[:3], None
    # The second row, which is padded, in full, and a part of the first.
    length = int((~batch.padding_mask[1]).sum()) + 1
    padding_mask = batch.padding_mask[:2, :length].contiguous()

    # Strides of a view would become a part of the program.
    return batch.inputs[:2, :length].contiguous(), padding_mask


@torch.no_grad()
def compare_program(program: Program, outputs: dict[str, Tensor]) -> Differences:
    """Compare results for :func:`draw_batch` with our own model's, at valid frames.

    :param outputs: by :attr:`Program.output_names`.
    """
    batch = draw_batch(program.model, program.modality)
    expected = dict(zip(program.output_names, program(*arguments_of(program)), strict=True))
    padding_mask = expected.get(FRAME_PADDING, batch.padding_mask)

    found = {}
    for name, ours in expected.items():
        theirs = outputs[name]
        if name == FRAME_PADDING:
            found[name] = 0.0 if torch.equal(ours, theirs) else float("inf")
        elif padding_mask is not None and ours.dim() == 3 and ours.shape == theirs.shape:
            found[name] = largest_difference(ours[~padding_mask], theirs[~padding_mask])
        else:
            found[name] = largest_difference(ours, theirs)

    return found


def arguments_of(program: Program) -> tuple[Tensor, ...]:
    """The inputs that are compared."""
    batch = draw_batch(program.model, program.modality)
    return (batch.inputs,) if batch.padding_mask is None else (batch.inputs, batch.padding_mask)
