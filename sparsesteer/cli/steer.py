"""``sparsesteer steer``: a prompt answered without and with edited features, side by side."""

from dataclasses import replace
from pathlib import Path
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
    RawOption,
    SpecModelOption,
    SpecSaeOption,
    counted,
    loading,
    note,
    one_line_errors,
    print_json,
)
from sparsesteer.cli.edit_grammar import parse_edits
from sparsesteer.cli.models import DEMO, SMOLLM2, load_model, load_sae
from sparsesteer.generation import as_text, encode_prompt, generate
from sparsesteer.model.positions import NAMES as POSITIONS
from sparsesteer.model.positions import Positions
from sparsesteer.naming import resolved
from sparsesteer.sae import SAE
from sparsesteer.specs import SaeReference, Spec, load_spec


@one_line_errors
def steer(
    prompt: Annotated[str, typer.Argument(help="What the model is asked.")],
    edit: Annotated[
        list[str] | None,
        typer.Option(
            "--edit",
            "-e",
            help="rule:feature=value[,feature=value...], rule one of set, add, scale, cap, floor; or ablate:5,6. A "
            "feature is a number, words of its explanation, or a Neuronpedia id; a value is a number, or 2x-max. "
            'A last ":active" edits a feature only where it is active: floor:4=2:active. Can be repeated.',
        ),
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="YAML or JSON file that says all of it, instead of --edit.")] = None,
    model: SpecModelOption = None,
    sae: SpecSaeOption = None,
    layer: LayerOption = None,
    positions: Annotated[
        str | None, typer.Option(help=f"Tokens steered: {', '.join(POSITIONS)}.", show_default="all, or the spec's")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Factor on the whole edit; 0 is no steering.", show_default="1, or the spec's")
    ] = None,
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

        sparsesteer steer -e set:elephants=2x-max --positions generated "Tell me about your day."

        sparsesteer steer --spec elephants.yaml "Tell me about your day."

        sparsesteer steer -m gpt2 -s "gpt2-small-res-jb:blocks.8.hook_resid_pre" -e add:7=30 --raw "Once upon a time"
    """
    said = _spec_of(edit, spec, positions, strength)
    model = model or said.model or SMOLLM2
    sae = sae or (DEMO if said.sae == SaeReference() else None)
    with loading(f"the SAE and {model}"):
        autoencoder = said.sae.load(said.folder) if sae is None else load_sae(sae, model)
        plan = said.plan(autoencoder)
        network, tokenizer = load_model(model)
    for line in _named(said, autoencoder):
        note(line)
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
    steered_tokens = without_first(said.positions, prompt_ids.shape[1])
    with hooks.steer(network, target, said.strength, steered_tokens, exclude_special_tokens=tokenizer):
        steered = answer("Steered")
    if as_json:
        print_json(
            {
                "model": model,
                "sae": sae or said.document()["sae"],
                "edits": edit or said.document()["edits"],
                "strength": said.strength,
                "positions": said.document().get("positions", "all"),
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
        Panel(Text(steered), title=f"steered by {' '.join(edit or [str(spec)])}", width=width, border_style="green"),
    ]
    console.print(Columns(panels))


def _spec_of(edit: list[str] | None, file: Path | None, positions: str | None, strength: float | None) -> Spec:
    """What the options say, as a spec."""
    if bool(edit) == (file is not None):
        raise typer.BadParameter("say what is steered, by --edit or by --spec, one of them")
    if positions is not None and positions not in POSITIONS:
        raise ValueError(f"--positions: {positions!r} is unknown; use {', '.join(POSITIONS)}")
    said = load_spec(file) if file is not None else Spec(parse_edits(edit or []))
    return replace(
        said,
        positions=said.positions if positions is None else positions,
        strength=said.strength if strength is None else strength,
    )


def _named(spec: Spec, sae: SAE) -> list[str]:
    """One line for each feature that was named by words, or whose value was relative: what came of it."""
    lines = []
    for said, change in zip(spec.edit.changes, resolved(spec.edit, sae).changes, strict=True):
        if said.feature == change.feature and not said.relative:
            continue
        words = "" if sae.explanations is None else "  ".join(w.word for w in sae.explanations[int(change.feature)])
        value = "" if change.value is None else f" {change.value:g}"
        lines.append(f"{said.feature}: feature {change.feature}, {change.rule}{value}  {words}")
    return lines


def without_first(positions: Positions, prompt_length: int) -> Positions:
    """The named positions without the prompt's first token, in which many models park attention: its hidden state is
    a hundred times the size of others, and an edit there breaks the text."""
    if not isinstance(positions, str):
        return positions
    return {"all": slice(1, None), "prompt": slice(1, prompt_length)}.get(positions, positions)
