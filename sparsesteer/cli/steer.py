"""``sparsesteer steer``: a prompt answered without and with edited features, side by side."""

from typing import Annotated

import typer
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from sparsesteer import hooks
from sparsesteer.cli.border import (
    DebugOption,
    JsonOption,
    LayerOption,
    ModelOption,
    RawOption,
    SaeOption,
    counted,
    loading,
    one_line_errors,
    print_json,
)
from sparsesteer.cli.edit_grammar import parse_edits
from sparsesteer.cli.models import DEMO, SMOLLM2, load_model, load_sae
from sparsesteer.generation import as_text, encode_prompt, generate

POSITIONS = ("all", "prompt", "last_prompt", "generated")


@one_line_errors
def steer(
    prompt: Annotated[str, typer.Argument(help="What the model is asked.")],
    edit: Annotated[
        list[str],
        typer.Option(
            "--edit",
            "-e",
            help="rule:feature=value[,feature=value...], rule one of set, add, scale, cap, floor; or ablate:5,6. "
            'A last ":active" edits a feature only where it is active: floor:4=2:active. Can be repeated.',
        ),
    ],
    model: ModelOption = SMOLLM2,
    sae: SaeOption = DEMO,
    layer: LayerOption = None,
    positions: Annotated[str, typer.Option(help=f"Tokens steered: {', '.join(POSITIONS)}.")] = "all",
    strength: Annotated[float, typer.Option(help="Factor on the whole edit; 0 is no steering.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answers.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling, if the temperature is not 0.")] = 0,
    raw: RawOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Answer a prompt without and with edited features, side by side.

    The first token (an attention sink) and special tokens are never steered.

    Examples:

        sparsesteer steer -e set:123=8 "Tell me about your day."

        sparsesteer steer -e scale:99=0 -e ablate:5,6 --positions generated "Tell me about your day."

        sparsesteer steer -m gpt2 -s "gpt2-small-res-jb:blocks.8.hook_resid_pre" -e add:7=30 --raw "Once upon a time"
    """
    changes = parse_edits(edit)
    if positions not in POSITIONS:
        raise ValueError(f"--positions: {positions!r} is unknown; use {', '.join(POSITIONS)}")
    with loading(f"{sae} SAE and {model}"):
        autoencoder = load_sae(sae, model)
        network, tokenizer = load_model(model)
    plan = autoencoder.plan(changes)
    target = plan if layer is None else {layer: plan}
    prompt_ids = encode_prompt(tokenizer, prompt, raw=raw, device=network.device)

    def answer(description: str) -> str:
        with counted(max_new_tokens, description) as on_token:
            [new_ids] = generate(
                network,
                tokenizer,
                prompt_ids,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                on_token=on_token,
            )
        return as_text(tokenizer, new_ids)

    unsteered = answer("Unsteered")
    steered_tokens = without_first(positions, prompt_ids.shape[1])
    with hooks.steer(network, target, strength=strength, positions=steered_tokens, exclude_special_tokens=tokenizer):
        steered = answer("Steered")
    if as_json:
        print_json(
            {
                "model": model,
                "sae": sae,
                "edits": edit,
                "strength": strength,
                "positions": positions,
                "prompt": prompt,
                "unsteered": unsteered,
                "steered": steered,
            }
        )
        return
    console = Console()
    width = max(30, console.width // 2 - 1)
    panels = [
        Panel(Text(unsteered), title="unsteered", width=width),
        Panel(Text(steered), title=f"steered by {' '.join(edit)}", width=width, border_style="green"),
    ]
    console.print(Columns(panels))


def without_first(positions: str, prompt_length: int) -> str | slice:
    """The named positions without the prompt's first token, in which many models park attention: its hidden state is
    a hundred times the size of others, and an edit there breaks the text."""
    return {"all": slice(1, None), "prompt": slice(1, prompt_length)}.get(positions, positions)
