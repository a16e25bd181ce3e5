"""Bytes that a decoder's forward pass reads and writes on a GPU, from shapes alone: ``python -m tools.traffic``.

For what is memory-bound they are the time. Products and convolutions are left out; views cost nothing. The pass is in bf16 and
not compiled; no GPU and no memory are needed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from d2v_plugin.core.contracts import Views
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.factory import create_model

FREE = {"mm", "addmm", "bmm", "convolution", "empty", "new_empty", "_unsafe_view", "device"}


class Traffic(TorchDispatchMode):
    """Adds up bytes by operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        output = _convolve(*args) if name == "convolution" else function(*args, **(kwargs or {}))
        if name not in FREE and not function.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
            # What is expanded is read once.
            self.bytes[name] += sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in tensors)

        return output


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, *_: Any) -> Tensor:
    """An empty output, channels last: for a real one PyTorch asks the driver."""
    sides = [(x.size(i + 2) + 2 * padding[i] - weight.size(i + 2)) // stride[i] + 1 for i in range(2)]

    return x.new_empty(x.size(0), *sides, weight.size(0)).permute(0, 3, 1, 2)


def count_traffic(arch: str, num_rows: int) -> Counter[str]:
    """Bytes by operator in the decoder of an arch of images, of which a fifth is kept.

    :param num_rows: masked views of all images of a batch.
    """
    with torch.device("meta"):
        model = create_model(ARCHS[arch]()).train()
    frontend = model.frontend()
    assert model.config.image is not None and frontend.decoder is not None
    grid, dim = model.config.image.grid, model.config.dim
    length = grid[0] * grid[1]
    num_kept = round(length / 5)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model.to_empty(device="cuda")
        # The encoder ends with a norm, which autocast computes in fp32.
        x, noise = (torch.empty(num_rows, n, dim, device="cuda") for n in (num_kept, length - num_kept))
        kept, masked = (torch.empty(num_rows, n, dtype=torch.int64, device="cuda") for n in (num_kept, length - num_kept))
        views = Views(kept, masked, None, torch.empty(num_rows, dtype=torch.int64, device="cuda"), grid=grid)
        # Not `torch.autocast`, which wants a GPU.
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        traffic = Traffic()
        try:
            with traffic:
                model.decode(frontend.decoder, x, views, noise)
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()

    return traffic.bytes


if __name__ == "__main__":
    found = count_traffic("image_base", 256 * 16)
    for operator, size in found.most_common():
        print(f"{size / 1e9:8.1f} GB  {operator}")
    print(f"{found.total() / 1e9:8.1f} GB  in all: image_base, 256 images x 16 views")
