"""A worker whose torchrun is killed gets SIGTERM from the kernel; a run without torchrun outlives what started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# The worker tells its process and whether SIGTERM came; its parent ends without a word to it.
WORKER = """
import os, pathlib, signal, sys, time
from d2v_plugin.training.parent_death import stop_without_parent
told = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (told.with_name("stopped").touch(), os._exit(0)))
stop_without_parent()
told.with_name("pid.new").write_text(str(os.getpid()))
told.with_name("pid.new").replace(told)
time.sleep(60)
"""
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]]); time.sleep(60)"


@pytest.mark.parametrize("by_torchrun", [True, False])
def test_a_worker_stops_when_torchrun_is_killed_and_not_when_a_shell_is(by_torchrun: bool, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    environment |= {"TORCHELASTIC_RUN_ID": "x"} if by_torchrun else {}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, WORKER, str(tmp_path / "pid")], env=environment)
    worker = int(wait_for_file(tmp_path / "pid"))
    try:
        parent.kill()
        parent.wait()
        if by_torchrun:
            wait_for_file(tmp_path / "stopped")
        else:
            time.sleep(0.2)
            os.kill(worker, 0)
            assert not (tmp_path / "stopped").exists()
    finally:
        if not (tmp_path / "stopped").exists():
            os.kill(worker, signal.SIGKILL)


def wait_for_file(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)

    return path.read_text()
