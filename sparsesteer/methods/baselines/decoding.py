"""Steering by how the next token is chosen: context-aware decoding, and decoding by contrasting layers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsesteer.methods.baselines.control import Control
from sparsesteer.methods.spare.answering import Answerer, Begun
from sparsesteer.methods.spare.conflicts import Conflict
from sparsesteer.methods.spare.statistics import SIDES
from sparsesteer.model.places import Place, argument_names
from sparsesteer.model.sites import ModelSites

CAD_ALPHAS = {"context": 0.6, "memory": -0.8}
DOLA_ALPHAS = {"context": 6.0, "memory": -8.0}


class ContextAwareDecoding(Control):
    """CAD (Shi 2024): log p = (1 + alpha) log p(y | c, x) - alpha log p(y | x).

    Without context are the question and its demonstrations.

    Args:
        alphas: by direction; the paper that SPARE is compared in has these for Llama, 0.3 and -0.3 for Gemma.
    """

    name = "CAD"

    def __init__(self, alphas: Mapping[str, float] = CAD_ALPHAS) -> None:
        self.alphas = _by_side(alphas, "CAD")

    def generation_options(self, answerer: Answerer, conflicts: Sequence[Conflict], toward: str) -> dict[str, Any]:
        """See ``Control``."""
        from transformers import LogitsProcessorList

        prompts = [without_context(conflict) for conflict in conflicts]
        answerer.prepare(prompts)
        guided = _Guided(answerer.model, answerer.begun(prompts), self.alphas[toward])
        return {"logits_processor": LogitsProcessorList([guided])}


class _Guided:
    """Scores of the next token, as far as they do not follow without the context; for one call of ``generate``."""

    def __init__(self, model: Any, batch: Begun, alpha: float) -> None:
        self.model, self.mask, self.cache, self.alpha = model, batch.mask, batch.cache, alpha
        self.new: Tensor | None = batch.ids[:, batch.n_cached :]  # that the model has not read yet

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if self.new is None:
            self.new = ids[:, -1:]
            self.mask = nn.functional.pad(self.mask, (0, 1), value=1)
        places = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -self.new.shape[1] :]
        given = {"position_ids": places} if "position_ids" in argument_names(self.model) else {}
        read = self.model(
            input_ids=self.new, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **given
        )
        self.cache, self.new = read.past_key_values, None
        alone = read.logits[:, -1].float().log_softmax(-1)
        return (1 + self.alpha) * scores.float().log_softmax(-1) - self.alpha * alone


class ContrastingLayers(Control):
    """DoLa (Chuang 2024): log p = log p_mature - alpha log p_premature, for tokens that are likely enough at the end.

    The premature distribution is the unembedding of the residual stream after that of ``layers`` which differs most
    from the end, by Jensen-Shannon divergence, without the final norm. Tokens of less than ``plausible`` times the
    largest probability are left out. For greedy decoding.

    Args:
        layers: blocks, or other sites.
        alphas: by direction; the paper that SPARE is compared in has these for Llama, 1 and -1 for Gemma.
        plausible: 0.1 in the paper.

    Raises:
        ValueError: no layers; alphas that are not finite numbers for both directions; plausible outside of (0, 1].
    """

    name = "DoLa"

    def __init__(
        self,
        layers: Sequence[Any],
        alphas: Mapping[str, float] = DOLA_ALPHAS,
        plausible: float = 0.1,
    ) -> None:
        if not layers or isinstance(layers, str):
            raise ValueError(f"DoLa: layers to choose from are needed, got {layers!r}")
        if not 0 < plausible <= 1:
            raise ValueError(f"DoLa: plausible should be above 0 and at most 1, got {plausible!r}")
        self.layers, self.alphas, self.plausible = list(layers), _by_side(alphas, "DoLa"), plausible

    @contextmanager
    def apply(self, model: nn.Module, toward: str) -> Iterator[None]:
        """See ``Control``. Raises ValueError for a layer that the model lacks."""
        sites = ModelSites.of(model)
        unembedding = model.get_output_embeddings()  # type: ignore[operator]
        cap = getattr(model.config, "final_logit_softcapping", None)
        passed: dict[Any, Tensor] = {}

        def keep(layer: Any) -> Any:
            def kept(h: Tensor) -> Tensor:
                passed[layer] = h.clone()
                return h

            return kept

        def contrast(logits: Tensor) -> Tensor:
            width = logits.shape[1]  # often the last token alone is unembedded
            early = [
                nn.functional.linear(passed[layer][:, -width:].to(logits.device), unembedding.weight, unembedding.bias)
                for layer in self.layers
            ]
            scores = torch.stack([_capped(each.float(), cap) for each in (logits, *early)]).log_softmax(-1)
            return contrasted(scores[0], scores[1:], self.alphas[toward], self.plausible).to(logits.dtype)

        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.callback(sites.resolve(layer).attach(keep(layer)))
            hooks.callback(Place("the unembedding", unembedding).attach(contrast))
            yield


def contrasted(mature: Tensor, premature: Tensor, alpha: float, plausible: float) -> Tensor:
    """Scores [..., V] whose largest is 0, from log-probabilities [..., V] at the end and [J, ..., V] at J layers."""
    middle = torch.logaddexp(mature, premature) - math.log(2)
    divergence = ((mature.exp() * (mature - middle)).sum(-1) + (premature.exp() * (premature - middle)).sum(-1)) / 2
    chosen = divergence.argmax(0)[None, ..., None].expand(1, *mature.shape)
    scores = mature - alpha * premature.gather(0, chosen)[0]
    likely = mature >= mature.amax(-1, keepdim=True) + math.log(plausible)
    scores = scores.masked_fill(~likely, -math.inf)
    return scores - scores.amax(-1, keepdim=True)  # a model that caps its logits does not flatten what is near 0


def without_context(conflict: Conflict) -> str:
    """The prompt with neither its own context nor those of its demonstrations."""
    before = "".join(f"question: {each.question}\nanswer: {each.answer}\n\n" for each in conflict.demonstrations)
    return f"{before}question: {conflict.question}\nanswer:"


def _by_side(alphas: Mapping[str, float], method: str) -> dict[str, float]:
    numbers = {side: alphas.get(side, math.nan) for side in SIDES}
    if set(alphas) != set(SIDES) or not all(math.isfinite(alpha) for alpha in numbers.values()):
        raise ValueError(f"{method}: alphas should be a number for context and one for memory, got {dict(alphas)}")
    return numbers


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)
