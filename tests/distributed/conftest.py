"""Makes the helpers of tests/reliability importable: runs on several ranks, and their checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path

RELIABILITY = str(Path(__file__).parents[1] / "reliability")
if RELIABILITY not in sys.path:
    sys.path.insert(0, RELIABILITY)
