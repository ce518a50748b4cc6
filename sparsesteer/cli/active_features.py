"""``sparsesteer features TEXT``: which features are active where in a text."""

from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsesteer.cli.border import loading, print_json
from sparsesteer.cli.models import load_model, load_sae
from sparsesteer.generation import encode_prompt, hidden_states_at
from sparsesteer.logit_lens import promoted_tokens, words_of, written_words
from sparsesteer.sae import SAE

N_PROMOTED = 6
_COLORS = ((0.75, "bold white on red"), (0.4, "black on yellow"), (0.15, "green"), (0.0, "dim"))  # from this share on


@dataclass(frozen=True)
class FeatureColumn:
    """One feature in a text."""

    feature: int
    maximum: float
    promotes: list[str]
    activations: list[float]  # one per token


def print_active(text: str, model: str, sae: str, layer: int | None, top: int, raw: bool, as_json: bool) -> None:
    """See ``features.features``."""
    with loading(f"{sae} SAE and {model}"):
        autoencoder = load_sae(sae, model)
        network, tokenizer = load_model(model)
    ids = encode_prompt(tokenizer, text, raw=raw, device=network.device)
    kept = [i for i, token in enumerate(ids[0].tolist()) if i > 0 and token not in tokenizer.all_special_ids]
    if not kept:
        raise ValueError("the text has no tokens but its first and special ones, which are left out; give a longer one")
    with torch.no_grad(), hidden_states_at(network, autoencoder.site if layer is None else layer) as caught:
        network(ids, use_cache=False)
    codes = autoencoder.encode(caught[0][0, kept].float().cpu())
    chosen, maxima = strongest(autoencoder, codes, top)
    directions = autoencoder.whole_decoder()[0][chosen]
    among = written_words(network, tokenizer)
    promoted = promoted_tokens(network, directions.to(network.device), min(N_PROMOTED, len(among)), among)
    columns = [
        FeatureColumn(feature, maximum, words_of(tokenizer, row), codes[:, feature].tolist())
        for feature, maximum, row in zip(chosen.tolist(), maxima.tolist(), promoted, strict=True)
    ]
    tokens = tokenizer.batch_decode([[token] for token in ids[0, kept].tolist()])
    if as_json:
        print_json({"model": model, "sae": sae, "tokens": tokens, "features": [asdict(c) for c in columns]})
        return
    console = Console()
    console.print(_table(tokens, columns, known_maxima=autoencoder.feature_maximum is not None))
    for column in columns:
        console.print(Text(f"{column.feature:>7} promotes  {'  '.join(column.promotes)}"))


def strongest(sae: SAE, codes: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(features [<= top], their maxima): the active ones that come nearest their maximum in codes [T, F]."""
    maxima = codes.amax(0) if sae.feature_maximum is None else sae.feature_maximum.to(codes)
    strength = codes.amax(0)
    if sae.feature_maximum is not None:
        strength = strength / maxima.clamp_min(torch.finfo(maxima.dtype).tiny)
    order = strength.argsort(descending=True, stable=True)[:top]
    order = order[codes.amax(0)[order] > 0]
    return order, maxima[order]


def _table(tokens: list[str], columns: list[FeatureColumn], known_maxima: bool) -> Table:
    table = Table(title=f"% of the maximum {'over the SAE corpus' if known_maxima else 'in this text'}")
    table.add_column("token")
    for column in columns:
        table.add_column(str(column.feature), justify="right")
    for i, token in enumerate(tokens):
        table.add_row(Text(repr(token)[1:-1]), *(_cell(column.activations[i] / column.maximum) for column in columns))
    return table


def _cell(share: float) -> Text:
    if share <= 0:
        return Text("")
    style = next(style for bound, style in _COLORS if share >= bound)
    return Text(f"{share:.0%}", style=style)
