"""The command ``sparsesteer``: each command parses, calls the library and prints."""

import typer

from sparsesteer.cli import alignsae, bench, demo, features, info, serve, spare, steer, watch

app = typer.Typer(
    help="Steer language models through their sparse autoencoders.",
    epilog="Start with:  sparsesteer demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (info.info, features.features, steer.steer, watch.watch, demo.demo, serve.serve, bench.bench):
    app.command()(command)
app.add_typer(spare.app, name="spare")
app.add_typer(alignsae.app, name="alignsae")


def main() -> None:
    """Entry point. Exit codes: 0 ok, 1 an error that the user can mend, 2 wrong usage."""
    app()
