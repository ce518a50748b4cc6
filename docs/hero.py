"""The picture at the top of the README: real commands and what they print, as docs/hero.svg. Run it: `make hero`."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = Path(__file__).with_suffix(".svg")
COLUMNS = 98
COMMANDS = (
    "sparsesteer features --search strike",
    "sparsesteer steer -e 'set:threaten strike=1.25x-max' --positions generated \\\n"
    '    --max-new-tokens 40 "Tell me about your day."',
)
THEME = TerminalTheme(
    (22, 27, 34),
    (208, 215, 222),
    [(72, 79, 88), (255, 123, 114), (255, 146, 72), (210, 153, 34),
     (121, 192, 255), (210, 168, 255), (86, 211, 194), (208, 215, 222)],
)  # fmt: skip
MONOSPACE = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_RUN = "from sparsesteer.cli import main; main()"  # this tree's command, installed or not


def printed(command: str) -> str:
    """What a command prints, with the colours that it has in a terminal.

    Raises:
        RuntimeError: it failed; the message has what it said.
    """
    arguments = shlex.split(command.replace("\\\n", " "))[1:]
    settings = {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm", "HF_HUB_OFFLINE": "1"}
    settings["PYTHONPATH"] = str(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], env={**os.environ, **settings}, capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError(f"{command} failed: {run.stderr.strip()[-2000:]}")
    return run.stdout


def picture() -> str:
    """All commands with what they print now, as SVG that asks for nothing from elsewhere."""
    console = Console(width=COLUMNS, record=True, force_terminal=True, color_system="truecolor", file=io.StringIO())
    for place, command in enumerate(COMMANDS):
        console.print(Text.assemble("\n" if place else "", ("$ ", "bold magenta"), (command, "bold")))
        console.print(Text.from_ansi(printed(command).rstrip()))
    svg = console.export_svg(title="sparsesteer", theme=THEME, unique_id="hero")
    # rich's own fonts would be fetched from another server
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("font-family: Fira Code, monospace", f"font-family: {MONOSPACE}")


if __name__ == "__main__":
    unfinished = PICTURE.with_suffix(".unfinished")
    unfinished.write_text(picture(), encoding="utf-8")
    os.replace(unfinished, PICTURE)
