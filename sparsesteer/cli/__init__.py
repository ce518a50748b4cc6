"""The command ``sparsesteer``: each command parses, calls the library and prints.

Commands are imported when they are called: looking up a feature should not wait for torch.
"""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

# by name, in the order of the help: a function, or an app of commands of its own
COMMANDS = {
    "info": "info",
    "features": "features",
    "steer": "steer",
    "watch": "watch",
    "demo": "demo",
    "serve": "serve",
    "bench": "bench",
    "spare": "app",
    "alignsae": "app",
    "mi": "app",
}


class Commands(TyperGroup):
    """Knows its commands by name, and imports the module of the one that is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All of them, in order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command, or None for a name that is none's."""
        if cmd_name not in COMMANDS:
            return None
        found = getattr(import_module(f"{__name__}.{cmd_name}"), COMMANDS[cmd_name])
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            alone.command(cmd_name)(found)
            found = alone
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=Commands,
    help="Steer language models through their sparse autoencoders.",
    epilog="Start with:  sparsesteer demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _commands() -> None:
    """Makes the app a group."""


def main() -> None:
    """Entry point. Exit codes: 0 ok, 1 an error that the user can mend, 2 wrong usage."""
    app()
