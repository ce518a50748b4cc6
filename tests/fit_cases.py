"""SPARE fitted to a tiny model, and the same by hand: the model and its examples, for tests of fitting."""

import pytest
import torch
from conflict_models import conflicts, model, sae, tokenizer

import sparsesteer as ss
from sparsesteer.methods.spare.conflicts import Conflict

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def world(one_thread_throughout):
    """(model, tokenizer, examples)."""
    the_model, the_tokenizer = model(), tokenizer()
    return the_model, the_tokenizer, conflicts(the_model, the_tokenizer, 26)


def fit(world, saes=None, examples=None, **options):
    the_model, the_tokenizer, known = world
    saes = {layer: sae(layer) for layer in LAYERS} if saes is None else saes
    given = {"k": 12, "max_new_tokens": 4, "batch_size": 3} | options
    return ss.SPARE.fit(the_model, the_tokenizer, saes, known if examples is None else examples, **given)


def by_hand(world):
    """(labels [n], states [n, D] by layer) of prompts answered one at a time, without padding."""
    the_model, the_tokenizer, examples = world
    labels, states = [], {layer: [] for layer in LAYERS}
    for i, example in enumerate(examples):
        if i % 3 == 2 or "not given" in example["sub_answer"] and "nor this" in example["org_answer"]:
            continue
        ids = the_tokenizer(Conflict.of(example, i).prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = the_model(ids, output_hidden_states=True).hidden_states
        labels.append(1 - i % 3)
        for layer in LAYERS:
            normed = layer == 2  # transformers shows the last block's output behind the norm
            states[layer].append(last_block_output(the_model, ids) if normed else hidden[layer + 1][0, -1])
    return torch.tensor(labels), {layer: torch.stack(each) for layer, each in states.items()}


def last_block_output(the_model, ids):
    caught = []
    handle = the_model.model.layers[2].register_forward_hook(lambda m, a, output: caught.append(output))
    with torch.no_grad():
        the_model(ids)
    handle.remove()
    return (caught[0] if isinstance(caught[0], torch.Tensor) else caught[0][0])[0, -1]
