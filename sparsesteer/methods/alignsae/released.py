"""The released code's own injections, for comparison alone: neither is where the SAE was trained.

``embedding``: the decoded state of the trained layer takes the place of the last prompt token's input embedding
(``06_swap_evaluate.py``). ``off_by_one``: the change that was computed at the trained layer is added after the block
behind it (``06_swap_evaluate_alignsae_hook.py``).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparsesteer import ops
from sparsesteer.methods.alignsae.alignsae import AlignSAE, Concept
from sparsesteer.methods.alignsae.answering import Answerer
from sparsesteer.methods.alignsae.fitting import places_of
from sparsesteer.model.places import Place, Stage
from sparsesteer.plans import SteeringPlan

INJECTIONS = ("embedding", "off_by_one")


def released_answers(
    answerer: Answerer,
    aligned: AlignSAE,
    layer: int,
    prompts: Sequence[str],
    source: Concept,
    target: Concept,
    alpha: float = 2.0,
    form: str = "latent_decode",
    injection: str = "embedding",
) -> list[str]:
    """Answers to prompts, which are swapped as the released scripts do it.

    Args:
        layer: the block behind which the states were read.

    Raises:
        ValueError: another injection; no block behind the layer.
    """
    if injection not in INJECTIONS:
        raise ValueError(f"AlignSAE: injection should be one of {', '.join(INJECTIONS)}, got {injection!r}")
    model = answerer.model
    if injection == "embedding":
        path = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
        site: Any = path
    else:
        site = layer + 1
    read, written = (places_of(model, [each])[each] for each in (layer, site))
    plan = aligned.plan(source, target, alpha, form)
    return [_answer(answerer, prompt, read, written, plan, injection == "embedding") for prompt in prompts]


def _answer(answerer: Answerer, prompt: str, read: Place, written: Place, plan: SteeringPlan, replaces: bool) -> str:
    """One prompt at a time: the state of an unsteered call changes the last token of another call's prompt."""
    h = answerer.last_states([prompt], {"read": read})["read"].to(answerer.device)
    changed = ops.steer(h, plan)
    pending = [changed if replaces else changed - h]

    def write(stream: Tensor) -> Tensor:
        if not pending:
            return stream
        new = pending.pop().to(stream)
        stream = stream.clone()
        stream[:, -1] = new if replaces else stream[:, -1] + new
        return stream

    detach = written.attach(write, Stage.AFTER)
    try:
        return answerer.answers([prompt])[0]
    finally:
        detach()
