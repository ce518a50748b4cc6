"""Peak memory of a few lines of Python, in a process of their own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def peak_kib() -> int:
    """The largest resident set of this process so far. Unlike ru_maxrss it does not start from the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def run_alone(program: str, *arguments: str) -> str:
    """What ``program`` prints; it may import this module."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout
