"""The command line that starts vLLM's OpenAI server with steering set up."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

_NAME = "sparsesteer"


def server_command(
    model: str,
    saes: Sequence[str],
    specs: Path | None,
    *,
    features: int = 4096,
    slots: int | None = None,
    allow_registration: bool = False,
    more: Sequence[str] = (),
) -> list[str]:
    """The arguments of the process.

    Args:
        saes: folders, or "release:sae_id"; "16=FOLDER" steers after block 16 instead of the SAE's own site.
        specs: a folder of specs, made if it is not there.
        more: options of vLLM's server, handed on.
    """
    settings: dict[str, Any] = {"sites": [_site(sae, features) for sae in saes]}
    if specs is not None:
        settings["specs"] = str(specs.expanduser().resolve())
    if slots is not None:
        settings["slots"] = slots
    if allow_registration:
        settings["allow_registration"] = True
    config = json.dumps({_NAME: settings})
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--additional-config", config,
            *more]  # fmt: skip


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the process: routes of a plugin are loaded only if ``VLLM_PLUGINS`` names it.

    The variable also says which general plugins run. Where it is not set all of them do, and go on doing so, but for
    those that would bring routes of their own, which nobody allowed.
    """
    named = environment.get("VLLM_PLUGINS")
    if named is None:
        routes = {each.name for each in entry_points(group="vllm.endpoint_plugins")}
        allowed = [each.name for each in entry_points(group="vllm.general_plugins") if each.name not in routes]
    else:
        allowed = [name for name in named.split(",") if name]
    # the V2 runner is not steered yet
    return {**environment, "VLLM_PLUGINS": ",".join(dict.fromkeys([*allowed, _NAME])), "VLLM_USE_V2_MODEL_RUNNER": "0"}


def run_server(command: list[str]) -> None:
    """Become the server."""
    os.execvpe(command[0], command, server_environment(os.environ))


def _site(sae: str, features: int) -> dict[str, Any]:
    block, equals, name = sae.partition("=")
    if equals and block.isdigit():
        return {"sae": _resolved(name), "site": int(block), "features": features}
    return {"sae": _resolved(sae), "features": features}


def _resolved(sae: str) -> str:
    path = Path(sae).expanduser()
    return str(path.resolve()) if path.exists() else sae
