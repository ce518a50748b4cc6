"""Writes the explanations of the demonstration SAE: the words that each feature's decoder row promotes most.

    .venv/bin/python examples/explain_demo_sae.py

The logit lens: a decoder row goes through the model's final norm and unembedding. Of the half of the vocabulary's words
that the model writes most, the best are kept. A score says how many standard deviations a word's logit lies above the
row's mean, and that again how many above the same word's mean over all rows: words that every row promotes would else
stand everywhere. Random directions with the decoder rows' covariance, scored in the same way, show what chance does.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import sparsesteer
from sparsesteer import Explanations
from sparsesteer.cli.models import DEMO, DEMO_SAE_FOLDER, SMOLLM2, load_model, load_sae
from sparsesteer.explanations import FILE_NAME
from sparsesteer.logit_lens import direction_logits, words_of, written_words

N_RANDOM = 2000
ABOUT = (
    "Words that the feature's decoder row promotes, directly, by the logit lens: what adding the row writes, not what "
    "makes the feature fire. Scores are standard deviations above the word's mean over all features. Chance reaches "
    "{chance:.2f} with its best word in 5 % of random directions, and {above} of {features} features do: most of these "
    "lists say little, so look at a feature's words and score before you trust its name."
)


def standardized(model: nn.Module, directions: Tensor, among: Tensor) -> Tensor:
    """Logits [M, V'] of the words ``among`` [V'], each direction's at mean 0 and standard deviation 1."""
    rows = []
    for chunk in directions.split(256):
        logits = direction_logits(model, chunk, among)
        rows.append((logits - logits.mean(-1, keepdim=True)) / logits.std(-1, keepdim=True))
    return torch.cat(rows)


def random_directions(rows: Tensor, count: int) -> Tensor:
    """Gaussian directions [count, D] with the mean and covariance of ``rows`` [F, D]."""
    centred = rows - rows.mean(0)
    mixed = torch.randn(count, len(rows), generator=torch.Generator().manual_seed(0)) @ centred
    return rows.mean(0) + mixed / (len(rows) - 1) ** 0.5


def word_list(words: list[str], scores: Tensor, count: int) -> list[tuple[str, float]]:
    """The best words of one feature with their scores, one of those that differ in capitals alone."""
    values, places = scores.topk(min(3 * count, len(words)))
    best: dict[str, tuple[str, float]] = {}
    for score, place in zip(values.tolist(), places.tolist(), strict=True):
        best.setdefault(words[place].casefold(), (words[place], round(score, 2)))
    return list(best.values())[:count]


@torch.no_grad()
def explain(count: int) -> Explanations:
    """The explanations of the demonstration SAE, ``count`` words a feature."""
    model, tokenizer = load_model(SMOLLM2)
    sae = load_sae(DEMO, SMOLLM2)
    among = written_words(model, tokenizer)
    rows = sae.whole_decoder()[0].to(model.device)
    scores = standardized(model, rows, among)
    mean, deviation = scores.mean(0), scores.std(0)
    scores = (scores - mean) / deviation
    random = (standardized(model, random_directions(rows.cpu(), N_RANDOM).to(rows), among) - mean) / deviation
    chance = random.amax(-1).quantile(0.95).item()
    above = int((scores.amax(-1) > chance).sum())
    words = words_of(tokenizer, among)
    return Explanations.of(
        [word_list(words, row, count) for row in scores],
        method="logit lens",
        method_version="1",
        model=sae.site.model_name,
        about=ABOUT.format(chance=chance, above=above, features=len(scores)),
        details={
            "script": "examples/explain_demo_sae.py",
            "sparsesteer": sparsesteer.__version__,
            "words_considered": len(among),
            "best_score_of_random_directions_95_percent": round(chance, 2),
            "features_with_a_better_one": above,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=8, help="words a feature")
    parser.add_argument("--out", type=Path, default=DEMO_SAE_FOLDER / FILE_NAME)
    args = parser.parse_args()
    explanations = explain(args.words)
    print(explanations.save(args.out), explanations, explanations.about, sep="\n")


if __name__ == "__main__":
    main()
