"""The command ``fairseq2 recipe convert``, for a checkout."""

from __future__ import annotations

import sys

from d2v_plugin.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
