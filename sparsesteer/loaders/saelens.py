"""SAELens: ``cfg.json`` and ``sae_weights.safetensors`` in a folder, of version 6 and of those before; live objects."""

from dataclasses import replace
from typing import Any

from sparsesteer.activations import Activation, Gated, Identity, JumpReLU, ReLU, Slots, TopK
from sparsesteer.loaders.named_tensors import NamedTensors
from sparsesteer.loaders.saelens_config import SITE, modern_config
from sparsesteer.loaders.saelens_whitening import WHITENED, fold_whitening
from sparsesteer.loaders.source import Source, build
from sparsesteer.lowering import NORMALIZATIONS
from sparsesteer.sae import SAE
from sparsesteer.site import Site

NAME = "SAELens"
FILES = "cfg.json and sae_weights.safetensors"

SKIP_TRANSCODERS = ("skip_transcoder", "jumprelu_skip_transcoder")
TRANSCODERS = ("transcoder", "jumprelu_transcoder", *SKIP_TRANSCODERS)
ARCHITECTURES = ("standard", "jumprelu", "topk", "gated", "slots", *TRANSCODERS)  # "slots" is ours (AlignSAE)
SLOTS_REST: dict[type[Activation], str] = {ReLU: "relu", JumpReLU: "jumprelu", Identity: "identity"}
WEIGHTS, CONFIG, STATISTICS = "sae_weights.safetensors", "cfg.json", "feature_statistics.safetensors"
_LIVE = "the sae_lens object"


def recognises(source: Source) -> bool:
    """A folder with both files, or the weights in it."""
    return source.has(WEIGHTS, CONFIG)


def read(source: Source) -> SAE:
    """Matrices are [D, F] and [F, D] as they are."""
    config = modern_config(source.json(CONFIG), str(source.folder))
    file = source.tensors(WEIGHTS)
    parts = _parts(config, file, str(source.folder))
    if isinstance(parts["activation"], TopK):
        source.chosen_k(parts["activation"].k)
    if parts["normalize"] == WHITENED:
        parts = fold_whitening(source, parts)
    if (source.folder / STATISTICS).is_file():
        parts["feature_maximum"] = source.tensors(STATISTICS).vector("maximum")
    return source.sae(_site(config), **parts)


def from_pretrained(release: str, sae_id: str) -> SAE:
    """Download a published SAE by sae-lens's names, e.g. ("gemma-scope-2b-pt-res-canonical", "layer_20/...").

    Raises:
        ImportError: sae-lens is not installed.
    """
    try:
        from sae_lens import SAE as LensSAE
    except ImportError as error:
        raise ImportError("SAE.from_pretrained needs sae-lens: pip install sparsesteer[lens]") from error
    loaded = from_saelens(LensSAE.from_pretrained(release, sae_id))
    loaded.site = replace(loaded.site, source=f"{release}/{sae_id}")
    return loaded


def from_saelens(sae: Any) -> SAE:
    """Take over a live sae_lens SAE of an architecture that is read from disk too; tensors are shared."""
    config = getattr(sae, "cfg", None)
    if config is None or not hasattr(sae, "W_enc"):
        raise TypeError(f"from_saelens takes a sae_lens SAE, got {type(sae).__name__}")
    modern = modern_config(config.to_dict(), _LIVE)
    file = NamedTensors(_LIVE, {name: parameter.detach() for name, parameter in sae.named_parameters()})
    parts = _parts(modern, file, _LIVE)
    if parts["normalize"] == WHITENED:
        raise ValueError(f"{_LIVE}: its whitening is not folded into its weights; use fold_activation_whitening first")
    return build(_LIVE, site=_site(modern), **parts)


def _parts(config: dict, file: NamedTensors, where: str) -> dict[str, Any]:
    """The arguments of ``SAE``, but for the site."""
    architecture, normalize = config["architecture"], config["normalize_activations"]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{where}: architecture {architecture!r} is not supported; {', '.join(ARCHITECTURES)} are")
    if not isinstance(normalize, str) or normalize not in (*NORMALIZATIONS, WHITENED):
        raise ValueError(
            f"{where}: normalize_activations={normalize!r} is not supported; {', '.join(NORMALIZATIONS)} are"
        )
    if config.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise ValueError(f"{where}: reshape_activations={config['reshape_activations']!r} is not supported")
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        file.check_ones(name)
    transcoder = architecture in TRANSCODERS
    parts = {
        "W_enc": file.matrix("W_enc"),
        "W_dec": file.matrix("W_dec"),
        "W_skip": file.matrix("W_skip") if architecture in SKIP_TRANSCODERS else None,
        "b_enc": None if architecture == "gated" else file.vector("b_enc"),
        "b_dec": file.vector("b_dec"),
        "activation": _activation(architecture, config, file, where),
        "normalize": normalize,
        "apply_b_dec_to_input": _flag(config, "apply_b_dec_to_input", not transcoder, where),
        "rescale_acts_by_decoder_norm": _flag(config, "rescale_acts_by_decoder_norm", False, where),
        "transcoder": transcoder,
    }
    _check_declared_shapes(config, parts, where)
    return parts


def _activation(architecture: str, config: dict, file: NamedTensors, where: str) -> Activation:
    if architecture.startswith("jumprelu"):
        return JumpReLU(threshold=file.vector("threshold"))
    if architecture == "topk":
        k = config.get("k")
        if type(k) is not int:
            raise ValueError(f"{where}: a topk SAE needs a whole number k in its configuration, got {k!r}")
        try:
            return TopK(k)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if architecture == "slots":
        return _slots(config, file, where)
    if architecture == "gated":
        return Gated(**{name: file.vector(name) for name in ("b_gate", "b_mag", "r_mag")})
    if config["activation_fn"] != "relu":
        raise ValueError(
            f"{where}: activation function {config['activation_fn']!r} is not supported; relu and topk are"
        )
    return ReLU()


def _slots(config: dict, file: NamedTensors, where: str) -> Slots:
    """The last n features linear, the others of the activation that the configuration calls their rest."""
    count, name = config.get("n_slots"), config.get("rest")
    if name not in SLOTS_REST.values():
        raise ValueError(f"{where}: the rest of slots should be one of {', '.join(SLOTS_REST.values())}, got {name!r}")
    rest = JumpReLU(file.vector("threshold")) if name == "jumprelu" else ReLU() if name == "relu" else Identity()
    try:
        return Slots(count, rest)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _site(config: dict) -> Site:
    metadata = config["metadata"]
    site = Site(**{name: metadata.get(name) for name in SITE})
    return replace(
        site,
        hook_name=site.hook_name or metadata.get("hf_hook_name"),
        hook_name_out=site.hook_name_out or metadata.get("hf_hook_name_out"),
    )


def _flag(config: dict, name: str, default: bool, where: str) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {name} should be true or false, got {value!r}")
    return value


def _check_declared_shapes(config: dict, parts: dict[str, Any], where: str) -> None:
    width, n_features = parts["W_enc"].shape
    out_width = parts["W_dec"].shape[-1]
    shape = (width, n_features)
    declared = config.get("d_in", width), config.get("d_sae", n_features)
    if shape != declared:
        raise ValueError(f"{where}: the configuration says d_in, d_sae = {declared}, but W_enc has shape {list(shape)}")
    if parts["transcoder"] and config.get("d_out", out_width) != out_width:
        raise ValueError(f"{where}: d_out is {config['d_out']!r}, but W_dec has shape {list(parts['W_dec'].shape)}")
