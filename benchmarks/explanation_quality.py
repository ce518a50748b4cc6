"""How well an explanation's words tell where a feature of the demonstration SAE fires: every ranking, and baselines.

    python -m sparsesteer.benchmarks.explanation_quality corpus.txt --json benchmarks/results/explanation_quality.json

The first half of the text is for the baseline that explains by contexts: of the words around the tokens that activate a
feature most, those that stand there much more often than elsewhere. The second half is held out: contexts that activate
a feature, and as many that do not, are told apart by their tokens' nearness to the explanation's words, in the model's
own embedding. 0.5 is a guess.
"""

import argparse
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

import sparsesteer as ss
from sparsesteer.benchmarks.planted_features import smollm2
from sparsesteer.files import write_whole
from sparsesteer.logit_lens import final_norm
from sparsesteer.methods.mi import vocabulary
from sparsesteer.methods.mi.contexts import states_of, windows_of
from sparsesteer.methods.mi.quality import STOP_SHARE, compared, held_out, predicted
from sparsesteer.methods.mi.scores import DEFAULT, SCORES

AROUND, MOST = 8, 20
LEAST_DENSITY, MOST_DENSITY = 2e-4, 2e-2


def word_vectors(
    lists: Mapping[int, list[str]], tokens: Mapping[str, list[int]], embeddings: Tensor
) -> dict[int, Tensor]:
    """The mean vector of each feature's words."""
    return {
        f: torch.stack([embeddings[tokens[w]].mean(0) for w in words]).mean(0) for f, words in lists.items() if words
    }


def words_of_contexts(
    codes: Tensor, windows: Tensor, features: list[int], words: Mapping[int, str], count: int
) -> dict:
    """Of the tokens around the ten most active ones: the words that stand there most beyond what all text has."""
    size = int(windows.max()) + 1
    usual = torch.bincount(windows.flatten(), minlength=size).float() / windows.numel()
    known = torch.zeros(size, dtype=torch.bool)
    known[[token for token in words if token < size]] = True
    found = {}
    for column, feature in enumerate(features):
        best, places = codes[:, :, column].max(1)
        top = best.argsort(descending=True)[:10]
        seen = torch.zeros(size)
        for w, p in zip(top[best[top] > 0].tolist(), places[top[best[top] > 0]].tolist(), strict=True):
            seen[windows[w, max(0, p - AROUND) : p + AROUND + 1]] += 1
        lift = (seen / seen.sum().clamp(min=1) / usual.clamp(min=1e-9)).log().mul(seen).masked_fill(~known, -1.0)
        ranked = [place for place in lift.argsort(descending=True)[:count].tolist() if lift[place] > 0]
        found[feature] = [words[place] for place in ranked]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--tokens", type=int, default=24_000)
    parser.add_argument("--features", type=int, default=400)
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model, tokenizer = smollm2()
    sae = ss.SAE.load_from_disk(str(resources.files("sparsesteer") / "assets/smollm2-135m-instruct-l16"))
    windows = windows_of([args.corpus.read_text(encoding="utf-8")], tokenizer, args.tokens)
    codes = torch.cat([sae.encode(h).half() for h in states_of(model, sae, windows)])
    codes[:, 0] = 0  # the first token is where the model parks attention
    density = (codes > 0).float().mean((0, 1))
    suitable = ((density >= LEAST_DENSITY) & (density <= MOST_DENSITY)).nonzero().flatten()
    order = torch.randperm(len(suitable), generator=torch.Generator().manual_seed(0))[: args.features]
    features = sorted(suitable[order].tolist())
    half = len(windows) // 2
    codes = codes[:, :, features].float()
    test = held_out(codes[half:], windows[half:], features, MOST, AROUND)
    unembedding = model.get_output_embeddings().weight.detach()
    tokens = vocabulary.of_tokenizer(tokenizer, unembedding=unembedding)
    embeddings = torch.nn.functional.normalize(unembedding.float() - unembedding.float().mean(0), dim=-1)
    frequent = torch.bincount(windows.flatten(), minlength=len(embeddings)) > STOP_SHARE * windows.numel()
    norm = final_norm(model)
    areas = {}
    for vectors in ("encoder", "decoder"):
        for score in SCORES:
            found = ss.explain(sae, unembedding, norm, tokens, score, vectors=vectors, count=args.count)
            lists = {f: [w.word for w in found[f]] for f in features}
            areas[f"{score}, {vectors}"] = predicted(
                word_vectors(lists, tokens, embeddings), test, embeddings, frequent
            )
    shipped = {f: [w.word for w in sae.explanations[f] if w.word in tokens] for f in features}  # type: ignore[index]
    areas["shipped: standardised logit lens"] = predicted(
        word_vectors(shipped, tokens, embeddings), test, embeddings, frequent
    )
    by_token = {ids[0]: word for word, ids in tokens.items()}
    contexts = words_of_contexts(codes[:half], windows[:half], features, by_token, args.count)
    areas["top contexts"] = predicted(word_vectors(contexts, tokens, embeddings), test, embeddings, frequent)
    ours = f"{DEFAULT}, encoder"
    default = ss.explain(sae, unembedding, norm, tokens, count=args.count)
    others = features[1:] + features[:1]
    mixed = {f: [w.word for w in default[other]] for f, other in zip(features, others, strict=True)}
    areas["chance: another feature's words"] = predicted(
        word_vectors(mixed, tokens, embeddings), test, embeddings, frequent
    )
    rows = [{"explanation": name, **compared(areas[ours], each)} for name, each in areas.items()]
    print(f"| words by | AUC | {ours} minus it, 95 % | better | worse |\n|---|---:|---:|---:|---:|")
    for r in rows:
        gap = f"{r['difference']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]"
        print(f"| {r['explanation']} | {r['theirs']:.3f} | {gap} | {r['better']:.0%} | {r['worse']:.0%} |")
    print(f"{len(test.n)} features, {sum(test.n.values())} active contexts held out, {windows.numel()} tokens")
    if args.json:
        facts = {"tokens": windows.numel(), "features": len(test.n), "active_contexts": sum(test.n.values())}
        write_whole(args.json, (json.dumps({**facts, "rows": rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
