"""SPARE as its authors ran it (arXiv 2410.15999): Llama-3-8B, Llama-2-7B or Gemma-2-9B on NQ-Swap.

    python examples/spare_llama3.py llama3 --out llama3
    torchrun --nproc-per-node 4 examples/spare_llama3.py gemma2 --out gemma2

Needs: pip install 'sparsesteer[lens,data]', a GPU for each process, and access to the models on the hub.

Layers, K, alpha, prompts, seeds and the form of the edit are those of the authors' program; where the paper says
something else, a comment does. As in the program, demonstrations are not restricted to what the model remembers.
Answers, states and results stay in ``--out``; the same call goes on where one was interrupted.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

import sparsesteer as ss
from sparsesteer.datasets import nq_swap
from sparsesteer.documents import read_document, write_document
from sparsesteer.methods.baselines import Control, InContext, SpareControl
from sparsesteer.methods.spare import Conflict, exact_match, with_demonstrations
from sparsesteer.methods.spare.answering import Answerer
from sparsesteer.methods.spare.processes import Processes

SHOTS_TO_FIT, SHOTS_TO_ANSWER = (3, 4, 5), 3
HELD_OUT = 128  # questions, drawn with HELD_OUT_SEED, that SPARE is fitted on and demonstrations come from
HELD_OUT_SEED = 42
NEW_TOKENS = 12


@dataclass(frozen=True)
class Setting:
    """What the authors chose for a model: blocks and alpha by direction."""

    model: str
    sae: str  # of block {layer}: a release and id of SAELens, or a folder in a repository on the hub
    layers: dict[str, tuple[int, ...]]
    share: float
    alpha: dict[str, float]
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46)

    @property
    def all_layers(self) -> list[int]:
        """Of both directions."""
        return sorted({layer for layers in self.layers.values() for layer in layers})


def _both(value: Any) -> dict[str, Any]:
    return {"context": value, "memory": value}


SETTINGS = {
    "llama3": Setting(
        "meta-llama/Meta-Llama-3-8B",
        "EleutherAI/sae-llama-3-8b-32x/layers.{layer}",
        _both((13, 14, 15, 16)),
        share=0.07,
        alpha=_both(2.0),
    ),
    "llama2": Setting(
        "meta-llama/Llama-2-7b-hf",
        "yuzhaouoe/Llama2-7b-SAE/layers.{layer}",
        _both((12, 13, 14, 15)),
        share=0.07,  # the paper: 0.06
        alpha=_both(2.0),  # the paper: 2.2
        seeds=(42, 43, 44, 46),  # prompts of seed 45 are longer than the model's context
    ),
    "gemma2": Setting(
        "google/gemma-2-9b",
        "gemma-scope-9b-pt-res-canonical:layer_{layer}/width_131k/canonical",
        {"context": (23, 24, 25, 26), "memory": (23, 24, 25, 29, 30, 31)},  # the paper: those of memory for both
        share=0.01,
        alpha={"context": 3.0, "memory": 1.8},
    ),
}


def load_sae(setting: Setting, layer: int) -> ss.SAE:
    """From the hub."""
    name = setting.sae.format(layer=layer)
    if ":" in name:
        return ss.SAE.from_pretrained(*name.split(":"))
    from huggingface_hub import snapshot_download

    owner, repository, folder = name.split("/")
    return ss.SAE.load_from_disk(
        Path(snapshot_download(f"{owner}/{repository}", allow_patterns=f"{folder}/*")) / folder
    )


def load_model(setting: Setting, device: torch.device) -> tuple[Any, Any]:
    """(model in bf16, tokenizer)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.bfloat16)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(setting.model)


def held_out(conflicts: Sequence[Conflict], n_questions: int = HELD_OUT) -> tuple[list[Conflict], list[Conflict]]:
    """(those of some questions, the others)."""
    questions = list(dict.fromkeys(conflict.question for conflict in conflicts))
    order = np.random.RandomState(HELD_OUT_SEED).permutation(len(questions))
    chosen = {questions[place] for place in order[:n_questions]}
    return [c for c in conflicts if c.question in chosen], [c for c in conflicts if c.question not in chosen]


def fit(
    setting: Setting, model: Any, tokenizer: Any, saes: dict[int, ss.SAE], pool: list[Conflict], out: Path
) -> ss.SPARE:
    """On every held-out conflict behind demonstrations of three kinds, of three numbers and several seeds."""
    prompts = [
        conflict
        for shots in SHOTS_TO_FIT
        for seed in setting.seeds
        for conflict in with_demonstrations(pool, shots, ("ss", "so", "oo"), seed)
    ]
    return ss.SPARE.fit(
        model, tokenizer, saes, prompts, share=setting.share, means="confidence", max_new_tokens=NEW_TOKENS,
        folder=out / "answers",
    )  # fmt: skip


def at_layers(spare: ss.SPARE, layers: Sequence[int]) -> ss.SPARE:
    """The same at some of its layers."""
    parts = ({layer: each[layer] for layer in layers} for each in (spare.saes, spare.statistics))
    return ss.SPARE(*parts, spare.selection, spare.about)


class Originals(InContext):
    """Demonstrations with their original contexts and answers, behind which nothing is steered yet."""

    kinds = {"context": "oo", "memory": "oo"}


def exact_matches(
    control: Control, answerer: Answerer, shown: Sequence[Conflict], toward: str, batch_size: int = 8
) -> float:
    """Percentage of answers that are those wanted."""
    right = 0
    for start in range(0, len(shown), batch_size):
        some = shown[start : start + batch_size]
        for conflict, answer in zip(some, control.answers(answerer, some, toward), strict=True):
            right += exact_match(answer, conflict.sub_answer if toward == "context" else conflict.org_answer)
    return 100 * right / len(shown)


def evaluate(
    setting: Setting, spare: ss.SPARE, answerer: Answerer, pool: list[Conflict], asked: list[Conflict], out: Path
) -> dict[str, Any]:
    """EM_C and EM_M, with and without SPARE, over the seeds of the demonstrations; each process takes some of these."""
    processes = Processes.current()
    for seed in processes.share(setting.seeds):
        file = out / f"seed{seed}.json"
        if file.exists():
            continue
        demonstrations = Originals(pool, SHOTS_TO_ANSWER, seed)
        found: dict[str, dict[str, float]] = {}
        for toward in ("context", "memory"):
            shown = [demonstrations.shown(conflict, toward) for conflict in asked]
            steered = SpareControl(at_layers(spare, setting.layers[toward]), setting.alpha[toward])
            for control in (Control(), steered):
                found.setdefault(control.name, {})[toward] = exact_matches(control, answerer, shown, toward)
        write_document(file, found)
    processes.wait()
    by_seed = [read_document(out / f"seed{seed}.json") for seed in setting.seeds]
    return {
        name: {
            toward: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}
            for toward in ("context", "memory")
            for values in [[found[name][toward] for found in by_seed]]
        }
        for name in by_seed[0]
    }


def run(
    setting: Setting, model: Any, tokenizer: Any, saes: dict[int, ss.SAE], examples: Sequence[Any], out: Path,
    n_held_out: int = HELD_OUT,
) -> dict[str, Any]:  # fmt: skip
    """Fit, evaluate, and leave ``spare.safetensors`` and ``results.json`` in ``out``; returns the latter."""
    pool, asked = held_out([Conflict.of(each, i) for i, each in enumerate(examples)], n_held_out)
    spare = fit(setting, model, tokenizer, saes, pool, out)
    results = evaluate(setting, spare, Answerer(model, tokenizer, {}, NEW_TOKENS), pool, asked, out)
    if Processes.current().rank == 0:
        spare.save(out / "spare.safetensors")
        write_document(out / "results.json", results)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SETTINGS)
    parser.add_argument("--out", type=Path, required=True, help="folder of answers, states and results")
    args = parser.parse_args()
    setting = SETTINGS[args.model]
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    if "LOCAL_RANK" in os.environ:
        torch.distributed.init_process_group("nccl")
    model, tokenizer = load_model(setting, device)
    saes = {layer: load_sae(setting, layer) for layer in setting.all_layers}
    print(json.dumps(run(setting, model, tokenizer, saes, nq_swap(), args.out), indent=1))


if __name__ == "__main__":
    main()
