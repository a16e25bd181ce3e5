"""Export: a checkpoint becomes a folder for use elsewhere, which is compared with our own model before it gets its name."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fairseq2.runtime.dependency import DependencyResolver

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.registry import unknown_name
from d2v_plugin.core.storage import put_in_place
from d2v_plugin.exporting.comparison import Differences
from d2v_plugin.exporting.exportable import Exportable, read_exportable
from d2v_plugin.exporting.formats import FORMATS, Format
from d2v_plugin.models.base import drop_criterion
from d2v_plugin.models.spectrograms import sees_spectrograms
from d2v_plugin.weights.directory import is_model_directory
from d2v_plugin.weights.sources import Weights

EXPORT_FILE: Final = "export.json"
"""Says of a folder that it was exported, from what, and how far it is from our own model."""


@dataclass(frozen=True)
class Export:
    """What was written."""

    files: list[Path]

    differences: Differences

    exportable: Exportable

    def describe(self) -> list[str]:
        """Lines about it, for people."""
        model, criterion = self.exportable.model, self.exportable.criterion
        state = (drop_criterion(model.state_dict()) if criterion is None else model.state_dict()).items()
        left_out = tuple(f"{name}." for name in model.prediction_modules)
        num_parameters = sum(tensor.numel() for name, tensor in state if not name.startswith(left_out))
        modalities = ", ".join(modality.value for modality in model.config.frontends)
        head = "no head" if criterion is None else f"head: {type(criterion).__name__}"
        listed = ", ".join(f"{what} {value:.1e}" for what, value in self.differences.items())

        return [
            *map(str, self.files),
            "",
            f"{num_parameters:,} parameters, {modalities}; {head}",
            f"largest difference from our own model: {listed}",
        ]


def export_model(
    path: str | Path,
    out: Path,
    *,
    format: str,
    resolver: DependencyResolver,
    weights: Weights = "student",
    head: bool = True,
    force: bool = False,
) -> Export:
    """Write a checkpoint in another format; ``out`` is there whole, and checked, or not at all.

    :param path: whatever :func:`d2v_plugin.load` reads.
    :param format: one of :data:`d2v_plugin.exporting.formats.FORMATS`.
    :param resolver: knows what is registered.
    :param head: False = the encoder alone.
    :param force: replace what an earlier export wrote.
    :raises CheckpointError: there is no such format or checkpoint, ``out`` exists, the format has no place for something, or
        what was written computes something else than our own model.
    """
    if format not in FORMATS:
        raise CheckpointError(unknown_name("format", format, FORMATS))
    check_place(out, force=force)
    exportable = read_exportable(path, resolver, weights=weights, head=head)
    _check_inputs(exportable, format)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
        new = Path(aside, out.name)
        differences = FORMATS[format].export(exportable, new)
        _check(format, FORMATS[format], differences)
        if not is_model_directory(new):
            (new / EXPORT_FILE).write_text(json.dumps(_describe(exportable, format, differences), indent=2) + "\n")
        _make_readable(new)
        put_in_place(new, out)

    return Export(sorted(path for path in out.rglob("*") if path.is_file()), differences, exportable)


def _check_inputs(exportable: Exportable, format: str) -> None:
    """:raises CheckpointError: the format has no place for inputs of this shape."""
    if format not in ("huggingface", "timm"):
        return
    config, fault = exportable.model.config, ""
    audio, image = (config.frontends.get(modality) for modality in (Modality.AUDIO, Modality.IMAGE))
    if sees_spectrograms(config):
        fault = "takes waveforms alone, but {} sees spectrograms"
    elif audio is not None and audio.num_channels != 1:
        fault = f"takes waveforms of one channel, but {{}} has `audio.num_channels` {audio.num_channels}"
    elif format == "huggingface" and image is not None and image.num_channels != 3:
        fault = f"takes images of three channels, but {{}} has `image.num_channels` {image.num_channels}"
    elif image is not None and not (isinstance(image.image_size, int) and isinstance(image.patch_size, int)):
        sizes = f"`image_size` {list(image.image_shape)} and `patch_size` {list(image.patch_shape)}"
        fault = f"has square images and patches alone, but {{}} has {sizes}"
    if fault:
        raise CheckpointError(f"The format `{format}` {fault.format(exportable.path)}; choose `torch_export` or `onnx`.")


def check_place(out: Path, *, force: bool) -> None:
    """
    :raises CheckpointError: something is there that must not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise CheckpointError(f"{out} exists already; choose another place, or replace it with --force.")
    if not ((out / EXPORT_FILE).is_file() or is_model_directory(out)):
        raise CheckpointError(f"{out} was not exported or converted; --force replaces nothing else.")


def _check(name: str, format: Format, differences: Differences) -> None:
    wrong = {what: value for what, value in differences.items() if not value <= format.tolerance}
    if wrong:
        listed = ", ".join(f"{what} by {value:.1e}" for what, value in wrong.items())
        raise CheckpointError(
            f"What was written as `{name}` does not compute what our own model computes ({listed}; at most {format.tolerance:g} "
            "is allowed). Nothing is left in place; please report it."
        )


def _make_readable(folder: Path) -> None:
    """Let others read what safetensors wrote for its owner alone, as far as new files may be read here."""
    probe = folder.parent / "probe"
    probe.touch()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(probe.stat().st_mode)


def _describe(exportable: Exportable, format: str, differences: Differences) -> dict[str, Any]:
    return {
        "format": format,
        "checkpoint": exportable.name,
        "weights": exportable.weights,
        "head": None if exportable.criterion is None else type(exportable.criterion).__name__,
        "largest_differences": dict(differences),
    }
