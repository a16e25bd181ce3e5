"""What the decoder moves on a GPU, counted without one."""

from __future__ import annotations

import pytest

from tools.traffic import count_traffic


def test_the_decoder_of_images_stays_in_the_compute_dtype() -> None:
    found = count_traffic("image_base", 256 * 16)

    # In fp32, to which autocast takes norms, and with them GELU and sums, these were 29.6, 29.6, 44.4 and 165.4 GB.
    assert {name: round(found[name] / 1e9, 1) for name in ("native_layer_norm", "gelu", "add")} == {
        "native_layer_norm": 14.8,
        "gelu": 14.8,
        "add": 22.2,
    }
    assert found.total() == pytest.approx(62.8e9, rel=0.01)
