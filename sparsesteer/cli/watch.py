"""``sparsesteer watch``: what chosen features do along a text, unsteered or steered."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
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
from sparsesteer.cli.steer import without_first
from sparsesteer.generation import encode_prompt, generate
from sparsesteer.recording import Recording, record
from sparsesteer.recording.files import finite


@one_line_errors
def watch(
    text: Annotated[str, typer.Argument(help="The text that the model reads.")],
    features: Annotated[str, typer.Option("--features", "-f", help="Features to watch, as in 12,99.")],
    edit: Annotated[
        list[str] | None, typer.Option("--edit", "-e", help="Steer meanwhile, as `sparsesteer steer` does.")
    ] = None,
    model: ModelOption = SMOLLM2,
    sae: SaeOption = DEMO,
    layer: LayerOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="Let the model go on; 0 only reads the text.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write a page that shows the tokens.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (.png, .svg, .pdf).")] = None,
    raw: RawOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the activations of chosen features along a text, before and after steering.

    An edit steers every token but the first (an attention sink) and special tokens.

    Examples:

        sparsesteer watch --features 12,99 --raw "The ship left the harbour at night."

        sparsesteer watch -f 12 -e set:12=8 --max-new-tokens 40 --html watch.html "Tell me about your day."
    """
    numbers = _features(features)
    changes = parse_edits(edit or [])
    with loading(f"{sae} SAE and {model}"):
        autoencoder = load_sae(sae, model)
        network, tokenizer = load_model(model)
    prompt_ids = encode_prompt(tokenizer, text, raw=raw, device=network.device)
    plan = autoencoder.plan(changes)
    steering = nullcontext()
    if len(changes):
        steering = hooks.steer(  # type: ignore[assignment]
            network,
            plan if layer is None else {layer: plan},
            positions=without_first("all", prompt_ids.shape[1]),
            exclude_special_tokens=tokenizer,
        )
    watched = numbers if layer is None else {layer: numbers}
    with steering, record(network, autoencoder, watched, tokenizer=tokenizer) as recording:
        if max_new_tokens:
            with counted(max_new_tokens, "Writing") as on_token:
                generate(network, tokenizer, prompt_ids, max_new_tokens=max_new_tokens, on_token=on_token)
        else:
            with torch.no_grad():
                network(prompt_ids, use_cache=False)
    written = []
    if html is not None:
        written.append(recording.to_html(html, title=f"Features {features} in {model}"))
    if plot is not None:
        written.append(recording.plot(plot))
    if as_json:
        print_json({"model": model, "sae": sae, "edits": edit or [], "recording": finite(recording.to_dict())})
        return
    console = Console()
    console.print(_table(recording, steered=len(changes) > 0))
    for path in written:
        console.print(Text(f"written: {path}"))


def _features(text: str) -> list[int]:
    numbers = []
    for piece in text.split(","):
        if not piece.strip().isdecimal():
            raise ValueError(f"--features {text!r}: {piece!r} is not a feature; give whole numbers from 0, as in 12,99")
        numbers.append(int(piece))
    return numbers


def _table(recording: Recording, steered: bool) -> Table:
    table = Table(title="activation before -> after steering" if steered else "activation")
    table.add_column("token")
    for each in recording.features:
        table.add_column(str(each.feature), justify="right")
    for text, before, after in zip(
        recording.texts or (), recording.before.tolist(), recording.after.tolist(), strict=True
    ):
        pairs = zip(before, after, strict=True)
        table.add_row(Text(repr(text)[1:-1]), *(_cell(b, a, steered) for b, a in pairs))
    return table


def _cell(before: float, after: float, steered: bool) -> Text:
    if before == after == 0:
        return Text("")
    return Text(f"{before:.2f} -> {after:.2f}" if steered else f"{after:.2f}", style="" if before == after else "bold")
