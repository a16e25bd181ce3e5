"""Runs several commands one after the other in the processes that torchrun started: starting them is what takes time.

Usage: run_commands.py COMMANDS PORTS, both JSON lists of the same length.
"""

from __future__ import annotations

import json
import os
import sys

from d2v_plugin.cli.main import main

if __name__ == "__main__":
    for words, port in zip(json.loads(sys.argv[1]), json.loads(sys.argv[2]), strict=True):
        # A store for each: in torchrun's own the keys of the process group before would be found again.
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
        main(words)
