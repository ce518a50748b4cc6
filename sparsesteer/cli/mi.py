import typer

app = typer.Typer(help="x", no_args_is_help=True)
