"""Random SAEs of sae_lens's own classes, and an edit said twice: to us, and to their post-activation hook."""

import torch
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)

from sparsesteer import Edit

CLASSES = {
    "standard": (StandardSAE, StandardSAEConfig),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
    "topk": (TopKSAE, TopKSAEConfig),
    "gated": (GatedSAE, GatedSAEConfig),
}
ARCHITECTURES = tuple(CLASSES)
TRANSCODERS = {
    "transcoder": (Transcoder, TranscoderConfig),
    "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig),
    "jumprelu_transcoder": (JumpReLUTranscoder, JumpReLUTranscoderConfig),
    "jumprelu_skip_transcoder": (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig),
}
NORMS = ("none", "layer_norm", "constant_norm_rescale")


def lens_sae(architecture, d_in, d_sae, *, dtype="float64", seed=0, **config):
    """A sae_lens SAE of random weights, decoder rows of different norms."""
    cls, config_class = (CLASSES | TRANSCODERS)[architecture]
    if architecture == "topk":
        config.setdefault("k", 5)
    sae = cls(config_class(d_in=d_in, d_sae=d_sae, dtype=dtype, device="cpu", **config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = values * (d_in**-0.5 if parameter.dim() == 2 else 0.3)
        parameter.data = (values.abs() if name == "threshold" else values).to(parameter.dtype)
    return sae.eval()


def acts_edit(values):
    """(our Edit, the hook that does the same to sae_lens's activations) of six rules over features -> value."""
    rules = ("set", "add", "scale", "ablate", "cap", "floor")
    parts = {rule: dict(list(values.items())[i :: len(rules)]) for i, rule in enumerate(rules)}
    ours = Edit()
    for rule, part in parts.items():
        ours |= Edit.ablate(part) if rule == "ablate" else getattr(Edit, rule)(part)

    def theirs(acts, hook=None):
        edited = acts.clone()
        for rule, part in parts.items():
            for feature, v in part.items():
                f = acts[..., feature]
                edited[..., feature] = {
                    "set": torch.full_like(f, v),
                    "add": f + v,
                    "scale": f * v,
                    "ablate": torch.zeros_like(f),
                    "cap": f.clamp(max=v),
                    "floor": f.clamp(min=v),
                }[rule]
        return edited

    return ours, theirs


@torch.no_grad()
def steered(sae, h, hook, *, error_term=True):
    """sae_lens's forward with its activations edited at hook_sae_acts_post."""
    sae._use_error_term = error_term
    sae.hook_sae_acts_post.add_hook(hook)
    try:
        return sae(h)
    finally:
        sae.hook_sae_acts_post.remove_hooks()


@torch.no_grad()
def busy_and_quiet(sae, h, n):
    """n features that fire on h the most, and n that fire the least, interleaved."""
    order = sae.encode(h).gt(0).sum(0).argsort(descending=True, stable=True).tolist()
    return [feature for pair in zip(order[:n], reversed(order), strict=False) for feature in pair]
