"""Where an SAE reads and writes in a model, and where its weights came from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """The place of an SAE: names as they stand in its file, resolved against a real model by ``hooks``.

    Args:
        model_name: the model that the SAE was trained on.
        hook_name: where it reads, TransformerLens style ("blocks.16.hook_resid_post") or a module path
            ("model.layers.16").
        hook_name_out: where it writes; differs from ``hook_name`` for a transcoder only.
        source: where the weights came from, a path or "release/sae_id".
        neuronpedia_id: "gpt2-small/8-res-jb".
    """

    model_name: str | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    source: str | None = None
    neuronpedia_id: str | None = None

    def __str__(self) -> str:
        return f"{self.hook_name or 'no site'} of {self.model_name or 'an unnamed model'}"
