"""sparsify and dictionary_learning, written and computed by their own classes; transcoders of SAELens."""

import json

import owners
import torch
from format_case import D_OUT, Case, D, F, lens_case, weights
from lens import lens_sae

from sparsesteer import Site

SPARSIFY_RUN = {"model": "meta-llama/Meta-Llama-3-8B", "dataset": "redpajama", "ctx_len": 2048}


def sparsify(folder, site, *, W_skip=False, extra=None, **config):
    def write(root):
        library = owners.sparsify()
        config_class = library.SparseCoderConfig
        coder = library.SparseCoder(D, config_class(k=7, skip_connection=W_skip, **config)).eval()
        n_features = coder.num_latents
        given = weights(f=n_features)
        coder.load_state_dict(
            {
                "encoder.weight": given["W_enc"].T, "encoder.bias": given["b_enc"], "W_dec": given["W_dec"],
                "b_dec": given["b_dec"],
            }
            | ({"W_skip": weights(3, D, D)["W_enc"]} if W_skip else {})
        )  # fmt: skip
        place = root / "EleutherAI/sae-llama-3-8b-32x" / folder
        coder.save_to_disk(place)
        (place.parent / "config.json").write_text(json.dumps(SPARSIFY_RUN))
        if extra is not None:
            path = place / "cfg.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | extra))
        coder = library.SparseCoder.load_from_disk(place).double()

        def encode(h):
            acts, indices, _ = coder.encode(h)
            return h.new_zeros(len(h), n_features).scatter(-1, indices, acts)

        def decode(f):
            return coder.decode(*f.topk(min(n_features, int((f != 0).sum(-1).max())), dim=-1))

        def skip(h):
            return h @ coder.W_skip.mT

        model = SPARSIFY_RUN["model"]
        return Case(place, encode, decode, Site(model, *site, source=str(place)), skip if W_skip else None)

    return write


def dictionary_learning(name, *arguments, unit=False, old_names=None, **config):
    """unit: decoder rows of norm 1, as the trainers leave them; old_names: a change of the state's names."""

    def write(root):
        cls = owners.dictionary_learning()[name]
        dictionary = cls(D, F, *arguments)
        _randomise(dictionary, unit)
        place = root / "canrager/lm_sae/pythia70m_sweep/resid_post_layer_3/trainer_0"
        place.mkdir(parents=True)
        state = {key: value.cpu() for key, value in dictionary.state_dict().items()}
        torch.save(old_names(state) if old_names else state, place / "ae.pt")
        trainer = {
            "dict_class": name, "trainer_class": "StandardTrainer", "lm_name": "EleutherAI/pythia-70m-deduped",
            "layer": 3, "activation_dim": D, "dict_size": F, "submodule_name": "resid_post_layer_3", **config,
        }  # fmt: skip
        (place / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}, indent=4))
        torch.save(state, root / "as_it_is_today.pt")
        dictionary = cls.from_pretrained(root / "as_it_is_today.pt").double()
        site = Site("EleutherAI/pythia-70m-deduped", "blocks.3.hook_resid_post", source=str(place))
        return Case(place, dictionary.encode, dictionary.decode, site)

    return write


def _randomise(dictionary, unit):
    generator = torch.Generator().manual_seed(11)
    for name, parameter in dictionary.named_parameters():
        scale = D**-0.5 if parameter.dim() == 2 else 0.3
        values = torch.randn(parameter.shape, generator=generator) * scale
        # keeps the strides that the class gives its weights, transposed ones too
        parameter.data.copy_(values.abs() if name == "threshold" else values)
    if unit:
        axis = 0 if hasattr(dictionary, "decoder") else 1
        decoder = dictionary.decoder.weight if hasattr(dictionary, "decoder") else dictionary.W_dec
        decoder.data /= decoder.data.norm(dim=axis, keepdim=True)
    if "threshold" in dict(dictionary.named_buffers()):
        dictionary.threshold.fill_(0.4)


def topk_of_july_2024(state):
    """The decoder was a parameter of the encoder's shape, and k stood in the configuration alone."""
    kept = {key: value for key, value in state.items() if key not in ("k", "threshold", "decoder.weight")}
    return kept | {"decoder": state["decoder.weight"].T.contiguous()}


def transcoder(architecture, **config):
    def write(root):
        lens = lens_sae(architecture, D, F, dtype="float32", d_out=D_OUT, apply_b_dec_to_input=False, **config)
        lens.cfg.metadata.hook_name, lens.cfg.metadata.hook_name_out = "blocks.3.hook_mlp_in", "blocks.3.hook_mlp_out"
        lens.cfg.metadata.model_name = "gpt2"
        place = root / "sae"
        lens.save_model(place)
        site = Site("gpt2", "blocks.3.hook_mlp_in", "blocks.3.hook_mlp_out", str(place))
        return lens_case(place, lens.to(torch.float64), site, d_out=D_OUT)

    return write


CASES = {
    "sparsify": sparsify("layers.10", ("blocks.10.hook_resid_post",), expansion_factor=4),
    "sparsify num_latents": sparsify("layers.10", ("blocks.10.hook_resid_post",), num_latents=88),
    "sparsify not normalised": sparsify("layers.10.mlp", ("layers.10.mlp",), num_latents=F, normalize_decoder=False),
    "sparsify signed=False": sparsify(
        "layers.10", ("blocks.10.hook_resid_post",), num_latents=F, extra={"signed": False}
    ),
    "sparsify skip connection": sparsify("layers.10", ("blocks.10.hook_resid_post",), num_latents=F, W_skip=True),
    "sparsify transcoder": sparsify(
        "layers.10.mlp", ("blocks.10.mlp.hook_in", "layers.10.mlp"), num_latents=F, transcode=True
    ),
    "sparsify skip transcoder": sparsify(
        "layers.10.mlp", ("blocks.10.mlp.hook_in", "layers.10.mlp"), num_latents=F, transcode=True, W_skip=True
    ),
    "AutoEncoder": dictionary_learning("AutoEncoder", unit=True),
    "AutoEncoder of other norms": dictionary_learning("AutoEncoder"),
    "AutoEncoderNew": dictionary_learning("AutoEncoderNew"),
    "GatedAutoEncoder": dictionary_learning("GatedAutoEncoder"),
    "JumpReluAutoEncoder": dictionary_learning("JumpReluAutoEncoder"),
    "AutoEncoderTopK": dictionary_learning("AutoEncoderTopK", 7, unit=True, k=7),
    "AutoEncoderTopK of 2024-07": dictionary_learning("AutoEncoderTopK", 7, k=7, old_names=topk_of_july_2024),
    "BatchTopKSAE": dictionary_learning("BatchTopKSAE", 7, unit=True, k=7),
    "MatryoshkaBatchTopKSAE": dictionary_learning("MatryoshkaBatchTopKSAE", 7, [16, 32, 48], unit=True, k=7),
    "transcoder": transcoder("transcoder"),
    "transcoder with layer_norm": transcoder("transcoder", normalize_activations="layer_norm"),
    "skip transcoder": transcoder("skip_transcoder"),
    "skip transcoder with constant norm": transcoder("skip_transcoder", normalize_activations="constant_norm_rescale"),
    "jumprelu transcoder": transcoder("jumprelu_transcoder"),
    "jumprelu skip transcoder": transcoder("jumprelu_skip_transcoder"),
}
