"""Makes fairseq2 importable beside a PyTorch that is newer than the one its native library was built with."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from typing import Final

BUILT_WITH: Final = "2.9.1"
"""The PyTorch of fairseq2n 0.8.1, in its build for CUDA 12.8."""


def load_fairseq2n() -> None:
    """Load fairseq2n where PyTorch is one for CUDA 13, as all from 2.11 on are on PyPI.

    fairseq2n finds what it needs in newer versions (2.10 and 2.11 are tried), but it asks for their CUDA, and refuses 13; and it
    links to the runtime of CUDA 12, which such a PyTorch does not bring. Of tensors it knows the layout of 2.9: its decoders, and
    pipelines of tensors or of lists and dicts with some, crash. This package's pipelines carry objects it does not look into.

    :raises ImportError: that runtime is not installed.
    """
    # `importlib.metadata` would take longer to be imported than all else here.
    found = importlib.util.find_spec("torch")
    version = None if found is None or found.origin is None else Path(found.origin).with_name("version.py")
    if version is None or not version.is_file():
        return  # `import fairseq2` says what is missing
    if f"__version__ = '{BUILT_WITH}" in version.read_text():
        return

    # Here and not above: it takes seconds, and users of the versions that belong together do not pay for it at once.
    import torch

    cuda = torch.version.cuda
    if cuda is None or cuda.startswith("12."):
        return
    _preload_cuda_12()
    torch.version.cuda = "12.8"
    try:
        importlib.import_module("fairseq2n.bindings")
    finally:
        torch.version.cuda = cuda


def _preload_cuda_12() -> None:
    spec = importlib.util.find_spec("nvidia.cuda_runtime") if importlib.util.find_spec("nvidia") else None
    folders = (spec and spec.submodule_search_locations) or ()
    libraries = [path for folder in folders for path in Path(folder).glob("lib/libcudart.so.12")]
    if not libraries:
        raise ImportError(
            "fairseq2 needs the runtime of CUDA 12 beside this PyTorch; run `pip install nvidia-cuda-runtime-cu12`."
        )

    # Found by its name; its symbols are for nobody else.
    ctypes.CDLL(str(libraries[0]), mode=ctypes.RTLD_LOCAL)
