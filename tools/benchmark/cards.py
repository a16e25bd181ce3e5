"""What data sheets say of GPUs: rates of dense matrix products, memory, and links between the GPUs of one machine.

Sources: NVIDIA's data sheets of V100 (2020), A100 (2022), H100 (2024), H200 (2024), HGX B200 (2025; an eighth of the board), L40S
(2023) and L4 (2023). Where they name rates with sparsity only, half of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Card:
    """One kind of GPU."""

    name: str
    """Part of the name that PyTorch gives to the device."""

    half: float
    """FLOP/s of products of bfloat16 (V100: float16) with sums in fp32."""

    tf32: float
    """FLOP/s of products in fp32 as training recipes allow them: TF32, where the card has it."""

    memory: float
    """GiB that programs get."""

    bandwidth: float
    """Bytes/s of that memory."""

    link: float
    """Bytes/s that a GPU sends to the others of its machine, one way."""


# PCIe 4 (32 GB/s each way) and 5 (64) where there is no NVLink. More special names stand before those that they contain.
CARDS: Final = (
    Card("V100", 125e12, 15.7e12, 32, 0.9e12, 150e9),
    Card("A100-PCIE", 312e12, 156e12, 80, 1.94e12, 32e9),
    Card("A100", 312e12, 156e12, 80, 2.04e12, 300e9),
    Card("H100 PCIe", 756e12, 378e12, 80, 2.0e12, 64e9),
    Card("H100", 989e12, 495e12, 80, 3.35e12, 450e9),
    Card("H200", 989e12, 495e12, 140, 4.8e12, 450e9),
    Card("B200", 2250e12, 1125e12, 178, 8.0e12, 900e9),
    Card("L40S", 362e12, 183e12, 45, 0.86e12, 32e9),
    Card("L4", 121e12, 60e12, 22, 0.3e12, 32e9),
)


def find_card(name: str) -> Card | None:
    """The card of a device as PyTorch names it (``NVIDIA H100 80GB HBM3``); None = no data sheet is known here."""
    return next((card for card in CARDS if card.name.lower() in name.lower()), None)
