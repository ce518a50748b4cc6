"""The configuration of a SAELens SAE, in the names of version 6 whichever version wrote it."""

from dataclasses import fields

from sparsesteer.site import Site

FOLDED_BY_SAELENS = "expected_average_only_in"  # a training-time factor: SAELens applies nothing when it encodes
SITE = tuple(field.name for field in fields(Site) if field.name != "source")  # SAELens's metadata has the same names
_METADATA = (*SITE, "hf_hook_name", "hf_hook_name_out")


def modern_config(config: dict, where: str) -> dict:
    """Older files are flat and use other names."""
    config = dict(config)
    config["metadata"] = _metadata(config, where)
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    config["activation_fn"] = activation
    config.setdefault("architecture", "topk" if activation == "topk" else "standard")
    if config["architecture"] == "standard" and activation == "topk":
        config["architecture"] = "topk"
    if "k" not in config and isinstance(config.get("activation_fn_kwargs"), dict):
        config["k"] = config["activation_fn_kwargs"].get("k")
    normalize = config.get("normalize_activations", "none")
    if isinstance(normalize, bool):
        normalize = FOLDED_BY_SAELENS if normalize else "none"
    config["normalize_activations"] = "none" if normalize in (None, FOLDED_BY_SAELENS) else normalize
    return config


def _metadata(config: dict, where: str) -> dict:
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f"{where}: metadata in the configuration should be an object, got {metadata!r}")
    metadata = dict(metadata)
    for name in _METADATA:
        if name in config:
            metadata.setdefault(name, config[name])
    if "hook_point" in config:
        metadata.setdefault("hook_name", config["hook_point"])
    for name in _METADATA:
        if not isinstance(metadata.get(name), str | None):
            raise ValueError(f"{where}: {name} in the configuration should be a text, got {metadata[name]!r}")
    return metadata
