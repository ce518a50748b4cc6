"""SAELens's own loaders of foreign formats, without a network: downloads become files of a local folder."""

from unittest import mock

import sae_lens.loading.pretrained_sae_loaders as loaders
import torch
from sae_lens.registry import get_sae_class
from safetensors import safe_open


class _Absent(loaders.EntryNotFoundError):
    def __init__(self, message):
        Exception.__init__(self, message)  # without the answer of a server


def lens_loaded(name, root, repo_id, folder_name, *, norm_scaling_factor=None, **overrides):
    """The SAE that SAELens's loader ``name`` makes of files at ``root / repo_id``, in fp64."""

    def download(repo_id, filename, subfolder=None, **_):
        path = root / repo_id / (subfolder or "") / filename
        if not path.exists():
            raise _Absent(f"no {filename}")
        return str(path)

    def shapes(repo_id, filename):
        with safe_open(root / repo_id / filename, framework="pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}

    with (
        mock.patch.object(loaders, "hf_hub_download", download),
        mock.patch.object(loaders, "get_safetensors_tensor_shapes", shapes),
    ):
        config, state, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[name](
            repo_id=repo_id, folder_name=folder_name, device="cpu", force_download=False,
            cfg_overrides={"dtype": "float32", "device": "cpu"} | overrides,
        )  # fmt: skip
    config = loaders.handle_config_defaulting(config)
    cls, config_class = get_sae_class(config["architecture"])
    sae = cls(config_class.from_dict(config))
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state, assign=True)
    if norm_scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(norm_scaling_factor)
    sae.turn_off_forward_pass_hook_z_reshaping()  # our inputs have their heads side by side
    return sae.to(torch.float64).eval()
