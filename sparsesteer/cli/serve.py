"""``sparsesteer serve``: vLLM's OpenAI server, in which every request may be steered by a spec of its own."""

from importlib import util
from pathlib import Path
from typing import Annotated

import typer

from sparsesteer.cli.border import DebugOption, note, one_line_errors
from sparsesteer.cli.models import DEMO, DEMO_SAE_FOLDER
from sparsesteer.serving.server_command import run_server, server_command


@one_line_errors
def serve(
    model: Annotated[str, typer.Argument(help="Hugging Face name or folder, as vLLM takes it.")],
    more: Annotated[list[str] | None, typer.Argument(help="Options of vLLM's server, behind --.")] = None,
    sae: Annotated[
        list[str] | None,
        typer.Option("--sae", "-s", help='Folder, "release:sae_id" or "demo"; "16=..." steers after block 16 instead.'),
    ] = None,
    specs: Annotated[
        Path | None, typer.Option(help="Folder of specs, read at the start; registered ones go there.")
    ] = None,
    features: Annotated[int, typer.Option(min=1, help="Room for different features at a time, for each SAE.")] = 4096,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Different specs of running requests at a time; others wait.")
    ] = None,
    allow_registration: Annotated[
        bool, typer.Option("--allow-registration", help="Let clients with the API key register and remove specs.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Start vLLM's OpenAI server; a request is steered by vllm_xargs={"sparsesteer": "NAME@STRENGTH"}.

    Example:

        sparsesteer serve my-model --sae my-sae --specs specs -- --port 8001 --api-key secret
    """
    if not sae and specs is None:
        raise ValueError("say what may be steered: --sae, or a folder of --specs")
    if util.find_spec("vllm") is None:
        raise ImportError("sparsesteer serve needs vLLM: pip install 'sparsesteer[vllm]'")
    saes = [each.replace(DEMO, str(DEMO_SAE_FOLDER)) if each.split("=")[-1] == DEMO else each for each in sae or ()]
    command = server_command(
        model, saes, specs, features=features, slots=slots, allow_registration=allow_registration, more=more or ()
    )
    note(" ".join(command))
    run_server(command)
