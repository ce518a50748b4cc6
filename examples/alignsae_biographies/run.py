"""AlignSAE from an empty folder: a world, a small language model that knows it, an SAE for each layer, swaps, a report.

    python examples/alignsae_biographies/run.py work --report report

Every stage leaves a file in the folder and is skipped where it is there; SAEs go on from their checkpoints. With
``--model smollm2`` or a folder of a GPT-2, that model is fine-tuned in place of a new one. On two cores, the defaults
take less than an hour; the whole world of the paper (``--people 1000``) wants a GPU. ``--two-hop-layers 1 2`` adds
chains of two relations, whose language model wants more steps than fit into that hour.

Needs: pip install 'sparsesteer[data,demo]'.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from comparing import compared
from language_model import Recipe, accuracy, train
from report import write_report
from settings import RECIPE, Sets
from study import Study

from sparsesteer import Site
from sparsesteer.datasets.biographies import biographies, two_hop
from sparsesteer.documents import read_document, write_document
from sparsesteer.methods.alignsae.measures import binding_of


class Clock:
    """Says what is done, and adds the time of every run of the program to a file of the folder."""

    def __init__(self, folder: Path) -> None:
        self.path, self.started = folder / "time.json", time.time()
        self.before = read_document(self.path) if self.path.exists() else {"minutes": 0.0, "cpu_minutes": 0.0}

    def told(self, text: str) -> None:
        """A line with the minutes since the folder was begun."""
        minutes = self.before["minutes"] + (time.time() - self.started) / 60
        cpu_minutes = self.before["cpu_minutes"] + time.process_time() / 60
        write_document(self.path, {"minutes": minutes, "cpu_minutes": cpu_minutes})
        print(f"{minutes:6.1f} min  {text}", flush=True)


def one_hop(args: argparse.Namespace, clock: Clock) -> dict:
    """People: the language model, and everything up to the test."""
    folder = args.folder / "biographies"
    world = biographies(args.people, args.seed)
    recipe = Recipe(layers=args.layers, width=args.width, heads=args.width // 32, steps=args.steps)
    asked = world.questions()
    model, tokenizer = train(
        folder / "model", world.statements(), [(q.prompt, f" {q.answer}") for q in asked], recipe, base=args.model
    )
    sets = Sets(
        train=world.questions("train", "train"),
        validation=world.questions("validation", "validation"),
        test={"trained_wording": world.questions("train", "test"), "unseen_wording": world.questions("unseen", "test")},
        concepts=world.concepts,
    )
    layers = args.scan or range(model.config.num_hidden_layers)
    study = Study(
        folder, model, tokenizer, sets, layers, replace(RECIPE, seed=args.seed, stage_two=args.epochs), say=clock.told
    )

    def knows() -> dict:
        return {name: accuracy(model, tokenizer, world.questions(name)) for name in ("train", "validation", "unseen")}

    known = study.once("language_model", knows)
    found = {"people": args.people, "language_model": known, **scanned(study)}
    found["carried"] = [study.carried(layer) for layer in layers]
    best = found["layer"]
    for form in study.forms:
        study.validation(best, form)
    found["test"] = study.test(best)
    found["compared"] = compared(study, found["test"])
    found["released"] = study.released(best)
    return found


def scanned(study: Study) -> dict:
    """Binding and swaps on validation for every layer, and the layer chosen."""
    binding = [study.binding(layer) for layer in study.layers]
    scan = {
        str(layer): {form: study.validation(layer, form) for form in ("slot", "latent_decode")}
        for layer in study.layers
    }
    return {
        "concepts": study.sets.concepts,
        "answers": {name: sum(right) / len(right) for name, right in study.answers().items()},
        "binding": binding,
        "validation": scan,
        "layer": study.chosen_layer(),
    }


def chains(args: argparse.Namespace, clock: Clock) -> dict:
    """Chains of two relations, swapped behind the first answer."""
    folder = args.folder / "two_hop"
    world = two_hop(args.entities, args.chains, args.seed)
    recipe = Recipe(layers=4, width=args.width, heads=args.width // 32, steps=args.two_hop_steps, vocabulary=512)
    said = {(q.prompt, q.answer) for q in world.questions(2, "train")}
    answered = [(prompt, f" {answer}") for prompt, answer in sorted(said)]
    whole = [(q.prompt, f" {q.answer} {r.answer}") for q, r in zip(
        world.questions(1, "train"), world.questions(2, "train"), strict=True)]  # fmt: skip
    model, tokenizer = train(folder / "model", world.statements(), answered + whole, recipe)
    sets = Sets(
        train=[*world.questions(1, "train"), *world.questions(2, "train")],
        validation=world.questions(2, "validation"),
        test={"second_hop": world.questions(2, "test")},
        concepts=world.concepts,
    )
    study = Study(
        folder,
        model,
        tokenizer,
        sets,
        args.two_hop_layers,
        replace(RECIPE, seed=args.seed, stage_two=args.epochs),
        validation_swaps=100,
        test_swaps=200,
        forms=("slot", "latent_decode"),
        top_features=(1, 8),
        say=clock.told,
    )
    epochs = {layer: followed(study, layer) for layer in study.layers}
    found = {"entities": args.entities, "chains": args.chains, "epochs": epochs, **scanned(study)}
    found["test"] = study.test(found["layer"])
    found["compared"] = compared(study, found["test"])
    return found


def followed(study: Study, layer: int) -> list[dict]:
    """Train the AlignSAE of a layer; its diagonal on validation after every epoch."""
    states, n = study.states["validation"][layer], len(study.sets.concepts)

    def measure(network: torch.nn.Module, numbers: dict) -> None:
        numbers["diagonal"] = binding_of(network.sae(Site()), states, n).diagonal

    history = study.aligned(layer, measure).about["history"]
    return [{name: row.get(name) for name in ("epoch", "slots", "validation_slots", "diagonal")} for row in history]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of everything that is made")
    parser.add_argument("--report", type=Path, help="folder of the report; the other one by default")
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--model", help="smollm2, or a folder of a GPT-2, to be fine-tuned; a new GPT-2 by default")
    parser.add_argument("--layers", type=int, default=Recipe.layers, help="of the new model")
    parser.add_argument("--width", type=int, default=Recipe.width)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--scan", type=int, nargs="+", help="layers that get an SAE; all by default")
    parser.add_argument("--epochs", type=int, default=RECIPE.stage_two, help="of stage two; few people want more")
    parser.add_argument("--entities", type=int, default=40)
    parser.add_argument("--chains", type=int, default=3000)
    parser.add_argument("--two-hop-steps", type=int, default=3000)
    parser.add_argument("--two-hop-layers", type=int, nargs="*", default=[], help="of the chains; none leaves them out")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--seed", type=int, default=42, help="of the worlds and the SAEs")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = Clock(args.folder)
    found = {"biographies": one_hop(args, clock)}
    if args.two_hop_layers:
        found["two_hop"] = chains(args, clock)
    found["time"] = read_document(clock.path) | {"threads": torch.get_num_threads()}
    write_report(found, args.report or args.folder)
    print(f"written: {args.report or args.folder}")


if __name__ == "__main__":
    main()
