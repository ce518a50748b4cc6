"""Running programs: what they print is kept and shown when they fail."""

import os
import subprocess
from pathlib import Path

FOREIGN = ("SPARSESTEER_", "PYTHON", "PIP_", "TRITON_")


class CommandFailed(RuntimeError):
    """A program ended with an error; the message holds its command and the end of what it printed."""


def run(*command: object, cwd: Path, **variables: str) -> str:
    """What a program printed, run with ``variables`` and without settings of sparsesteer, Python or pip from outside.

    Raises:
        CommandFailed: its exit status is not 0.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    words = [str(word) for word in command]
    result = subprocess.run(
        words, cwd=cwd, env=own | {"PIP_CONFIG_FILE": os.devnull} | variables, capture_output=True, text=True
    )
    if result.returncode != 0:
        shown = " ".join(word if len(word) < 200 else "..." for word in words)
        raise CommandFailed(f"{shown}\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    return result.stdout
