"""What data sheets say of GPUs: rates of dense matrix products, and links between the GPUs of one machine; and their memory.

Sources: NVIDIA's data sheets of V100 (images.nvidia.com, volta-v100-datasheet-update-us-1165301-r5), A100
(nvidia-a100-datasheet-us-nvidia-1758950-r4), H100, H200, L40, L40S and L4 (resources.nvidia.com), and of Blackwell the table of
single GPUs of an HGX B200. Where they name rates with sparsity only, half of it. Memory is what PyTorch reports
(``total_memory``), which is less than the data sheet's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Card:
    """One kind of GPU."""

    name: str
    """Words of the name that PyTorch gives to the device."""

    half: float
    """FLOP/s of products of bfloat16 (V100: float16) with sums in fp32."""

    tf32: float
    """FLOP/s of products in fp32 as training recipes allow them: TF32, where the card has it."""

    memory: float
    """GiB that programs get."""

    link: float
    """Bytes/s that a GPU sends to the others of its machine, one way."""


# PCIe 3 (16 GB/s each way), 4 (32) and 5 (64) where not all GPUs of a machine have NVLink. More special names come first.
CARDS: Final = (
    Card("V100 PCIe", 112e12, 14e12, 31, 16e9),
    Card("V100", 125e12, 15.7e12, 31, 150e9),
    Card("A100 PCIe", 312e12, 156e12, 79, 32e9),
    Card("A100", 312e12, 156e12, 79, 300e9),
    Card("H100 PCIe", 756e12, 378e12, 79, 64e9),
    Card("H100 NVL", 835e12, 417e12, 93, 64e9),
    Card("H100", 989e12, 495e12, 79, 450e9),
    Card("H200", 989e12, 495e12, 139, 450e9),
    Card("B200", 2250e12, 1100e12, 178, 900e9),
    Card("L40S", 362e12, 183e12, 44, 32e9),
    Card("L40", 181e12, 90.5e12, 44, 32e9),
    Card("L4", 121e12, 60e12, 22, 32e9),
)


def find_card(name: str) -> Card | None:
    """The card of a device as PyTorch names it (``NVIDIA H100 80GB HBM3``); None = no data sheet of it is known here.

    Whole words count: a GH200 or an L40 is no H200 or L4. Slices of a card (MIG) and its slower editions (NVL) are others.
    """
    words = set(re.split(r"[\s-]+", name.lower()))
    for card in CARDS:
        own = set(card.name.lower().split())
        if own <= words and not (words - own) & {"mig", "nvl"}:
            return card

    return None
