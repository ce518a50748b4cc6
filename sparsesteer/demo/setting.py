"""What every part of the demonstration works on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsesteer.generation import as_text, encode_prompt, generate, hidden_states_at
from sparsesteer.model.sites import ModelSites
from sparsesteer.sae import SAE
from sparsesteer.storage import open_safetensors

STATISTICS = "feature_statistics.safetensors"

Track = Callable[[Iterable, str], Iterable]  # hands items on and shows the progress


@dataclass(frozen=True)
class Setting:
    """A model, an SAE with statistics of its corpus, a prompt and the model's own greedy answer to it."""

    model: nn.Module
    tokenizer: Any
    sae: SAE
    folder: Path
    density: Tensor  # [F], share of the corpus' tokens on which a feature is active
    maximum: Tensor  # [F], largest activation on the corpus
    prompt: str
    prompt_ids: Tensor  # [1, T]
    own_ids: list[int]

    @classmethod
    def load(cls, model: nn.Module, tokenizer: Any, folder: Path, prompt: str, new_tokens: int) -> "Setting":
        """Read the SAE and its statistics, and let the model answer the prompt with ``new_tokens`` tokens.

        Raises:
            FileNotFoundError: the folder holds no statistics.
            ValueError: no SAE, or statistics of another one.
        """
        file = folder / STATISTICS
        if not file.is_file():
            raise FileNotFoundError(f"the demonstration needs an SAE folder with {STATISTICS}, which {folder} lacks")
        sae, statistics = SAE.load_from_disk(folder), open_safetensors(file)
        for name in ("density", "maximum"):
            if name not in statistics or statistics[name].shape != (sae.d_sae,):
                raise ValueError(f"{file} should hold {name} of shape [{sae.d_sae}]")
        prompt_ids = encode_prompt(tokenizer, prompt, device=model.device)  # type: ignore[arg-type]
        return cls(
            model=model,
            tokenizer=tokenizer,
            sae=sae,
            folder=folder,
            density=statistics["density"].load(),
            maximum=statistics["maximum"].load(),
            prompt=prompt,
            prompt_ids=prompt_ids,
            own_ids=generate(model, tokenizer, prompt_ids, max_new_tokens=new_tokens)[0],
        )

    @property
    def block(self) -> nn.Module:
        """The module whose output the SAE reads."""
        return ModelSites.of(self.model).resolve(self.sae.site).module

    @property
    def own_text(self) -> str:
        """The model's own answer."""
        return as_text(self.tokenizer, self.own_ids)

    @property
    def whole_ids(self) -> Tensor:
        """Prompt and own answer, [1, T]."""
        return torch.cat([self.prompt_ids, torch.tensor([self.own_ids], device=self.prompt_ids.device)], dim=1)

    def answers(self, rows: int, new_tokens: int) -> list[list[int]]:
        """Greedy token ids after the prompt, ``rows`` times, under whatever steers each row of the model now."""
        return generate(self.model, self.tokenizer, self.prompt_ids.expand(rows, -1), max_new_tokens=new_tokens)

    @torch.no_grad()
    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(next-token logits [T, V], activations of the SAE [T, F]) of the unsteered model on a text ids [1, T]."""
        with hidden_states_at(self.model, self.sae.site) as caught:
            logits = self.model(ids, use_cache=False).logits[0].float()
        return logits, self.sae.encode(caught[0][0].float().cpu())

    def text(self, ids: list[int]) -> str:
        """Token ids as text."""
        return as_text(self.tokenizer, ids)
