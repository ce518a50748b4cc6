"""How a model is run: trained, checkpointed, spread over devices, quantised, with images, in other dtypes."""

import threading

import families
import models
import pytest
import torch
import transformers
from families import WIDTH, build
from models import plan, prompts
from test_hooks_families import at_sites, changed_by_hand, greedy_logits, plans_at, with_the_op, writable
from torch.utils.checkpoint import checkpoint

import sparsesteer as ss

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.*able. is deprecated"),
]

INSIDE = "blocks.0.hook_mlp_out"  # inside of what is checkpointed; a block's own output is not


def gradients(model, inputs, steering, checkpoint=None, backward=lambda loss: loss.backward()):
    """Of every parameter, where one backward pass goes through a call for each of the inputs."""
    model.train()
    model.zero_grad()
    if checkpoint is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpoint})
    functions = [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    with steering:
        backward(sum(model(ids, labels=ids).loss for ids in inputs))
    assert functions == [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    model.gradient_checkpointing_disable()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got, expected):
    assert got.keys() == expected.keys() and len(got) > 5
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@pytest.mark.parametrize("positions", ["all", slice(-3, None), [0, 2]], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_gradient_checkpointing_steers_each_call_again_as_it_was(name, positions, reentrant):
    """Two calls before the backward pass: computed again, each must be steered at its own tokens."""
    model, inputs = build(name), [prompts(2, 5, seed=1), prompts(2, 5, seed=2), prompts(1, 7, seed=3)]

    def steering():
        places = (INSIDE, "blocks.1.hook_resid_post", "blocks.1.attn.hook_in", "blocks.0.hook_resid_mid")
        return ss.steer(model, {place: plan(seed=i) for i, place in enumerate(places)}, positions=positions)

    expected = gradients(model, inputs, steering())
    assert_same(gradients(model, inputs, steering(), checkpoint=reentrant), expected)
    plain = gradients(model, inputs, ss.steer(model, {INSIDE: plan()}, strength=0.0))
    name = next(iter(plain))
    assert (plain[name] - expected[name]).norm() > 0.01 * plain[name].norm()


def test_gradient_checkpointing_in_a_backward_pass_of_another_thread():
    """As on a GPU, where autograd has threads of its own."""
    model, ids = build("llama"), prompts()

    def in_a_thread(loss):
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()

    def steering():
        return ss.steer(model, {INSIDE: plan()}, positions=[1])

    expected = gradients(model, [ids], steering())
    assert_same(gradients(model, [ids], steering(), checkpoint=False, backward=in_a_thread), expected)


def test_checkpoints_of_ones_own():
    """Around the whole model they are followed; around a part of it they compute again outside of its call."""
    model, ids = build("llama"), prompts()
    with ss.steer(model, {INSIDE: plan()}, positions=[1]):
        model(ids).logits.square().mean().backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        checkpoint(lambda: model(ids).logits, use_reentrant=False).square().mean().backward()
        assert_same({name: p.grad for name, p in model.named_parameters()}, expected)
        mlp = model.model.layers[0].mlp
        forward = mlp.forward
        mlp.forward = lambda x: checkpoint(forward, x, use_reentrant=False)  # the hook lies around it
        model(ids).logits.mean().backward()
        mlp.forward = forward
        block = model.model.layers[0]
        forward = block.forward
        block.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)
        with pytest.raises(RuntimeError, match="mlp ran outside the model whose calls show its tokens"):
            model(ids, use_cache=False).logits.mean().backward()


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon", "gpt_neox", "mixtral", "falcon_sequential"])
def test_gradients_at_every_hook_point_are_those_of_hooks_by_hand(name):
    model, ids = build(name), prompts()
    for point, each in plans_at(model, writable(model)).items():
        if point == "hook_resid_mid":
            continue  # by hand it would be written over what autograd keeps
        expected = gradients(model, [ids], changed_by_hand(model, with_the_op({point: each})))
        assert_same(gradients(model, [ids], ss.steer(model, at_sites({point: each}))), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "olmo2", "falcon_sequential"])
def test_gradients_amid_a_block_are_those_of_a_change_of_what_attention_adds(name):
    """The residual amid a block is written in place; the same function without that is r + (edited - r)."""
    model, ids, edit, entered = build(name), prompts(), plan(), []
    changes = {
        "hook_resid_pre": lambda h: entered.append(h) or h,
        "hook_attn_out": lambda a: ss.ops.steer(entered[-1] + a, edit) - entered[-1],
    }
    expected = gradients(model, [ids], changed_by_hand(model, changes))
    got = gradients(model, [ids], ss.steer(model, {"blocks.0.hook_resid_mid": edit}))
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_dropout_of_training_mode_goes_on():
    config_class, arguments = families.CONFIGS["gpt2"]
    model = transformers.GPT2LMHeadModel(config_class(**arguments | dict(resid_pdrop=0.5))).train()
    points = {point: plan(seed=i) for i, point in enumerate(("hook_resid_pre", "hook_mlp_out", "hook_resid_post"))}
    torch.manual_seed(0)
    with changed_by_hand(model, with_the_op(points)):
        expected = model(prompts()).logits
    torch.manual_seed(0)
    with ss.steer(model, at_sites(points)):
        assert torch.equal(model(prompts()).logits, expected)
    assert not torch.equal(model(prompts()).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "mixtral"])
def test_an_fp32_sae_in_a_model_of_another_dtype(name, dtype):
    model, ids = build(name).to(dtype), prompts()
    plans = plans_at(model, [point for point in writable(model) if point != "attn.hook_in"])
    assert all(each.encoder.dtype == torch.float32 for each in plans.values())
    changes = {point: lambda h, each=each: ss.ops.steer(h, each, 0.02) for point, each in plans.items()}
    with changed_by_hand(model, changes):
        expected = greedy_logits(model, ids)
    with ss.steer(model, at_sites(plans), strength=0.02):
        assert torch.equal(greedy_logits(model, ids), expected)
    assert not torch.equal(greedy_logits(model, ids), expected)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["all", [1]], ids=str)
def test_plans_follow_their_layers_to_other_devices(positions):
    """accelerate's hooks move the hidden states on; the second block lies on the meta device."""
    hooks = pytest.importorskip("accelerate.hooks")
    model = build("llama")
    for part in (model.model.layers[1], model.model.norm, model.lm_head):
        align = hooks.AlignDevicesHook(execution_device="meta", io_same_device=False)
        hooks.add_hook_to_module(part.to("meta"), align)
    plans = {0: plan(), 1: plan(seed=2), "blocks.1.hook_resid_mid": plan(seed=3), "blocks.1.attn.hook_z": plan(seed=4)}
    across = ss.Site(hook_name="blocks.0.mlp.hook_in", hook_name_out="blocks.1.hook_mlp_out")
    with ss.steer(model, plans | {across: plan(seed=5)}, positions=positions) as steering:
        assert model(prompts()).logits.device.type == "meta"
    assert [edit.plan.device.type for edit in steering._edits] == ["cpu"] + ["meta"] * 4
    assert plans[1].device.type == "cpu"


@torch.no_grad()
def test_weights_that_accelerate_keeps_elsewhere():
    accelerate = pytest.importorskip("accelerate")
    model, ids = build("llama"), prompts()
    plans = {0: plan(), "blocks.1.attn.hook_z": plan(seed=2), "blocks.1.hook_mlp_out": plan(seed=3)}
    with ss.steer(model, plans, positions="last_prompt"):
        expected = model(ids).logits
    accelerate.cpu_offload(model, execution_device="cpu")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    with ss.steer(model, plans, positions="last_prompt"):
        assert torch.equal(model(ids).logits, expected)


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_on_two_gpus():
    accelerate = pytest.importorskip("accelerate")
    model, ids = build("llama"), prompts()
    across = ss.Site(hook_name="blocks.0.mlp.hook_in", hook_name_out="blocks.1.hook_mlp_out")
    plans = {0: plan(), 1: plan(seed=2), "blocks.1.hook_resid_mid": plan(seed=3), across: plan(seed=4)}
    with ss.steer(model, plans, positions=slice(1, 4)):
        expected = model(ids).logits
    devices = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0, "model.layers.1": 1}
    model = accelerate.dispatch_model(model, devices | {"model.norm": 1, "lm_head": 1})
    with ss.steer(model, plans, positions=slice(1, 4)):
        torch.testing.assert_close(model(ids.to(0)).logits.cpu(), expected, atol=1e-3, rtol=1e-3)


def image_model():
    """Gemma 3 with as many blocks for images as for text, and an image as token 5."""
    _, arguments = families.CONFIGS["gemma3"]
    images = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = transformers.Gemma3Config(
        text_config=dict(arguments), vision_config=images, mm_tokens_per_image=1, image_token_index=5,
        boi_token_index=6, eoi_token_index=7,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
def test_a_model_of_images_and_text(positions):
    """Its text model is called with embeddings; the token ids are those of the call around it."""
    model, ids = image_model(), prompts(2, 8).clamp(min=8)
    ids[:, 2] = 5
    inputs = dict(input_ids=ids, pixel_values=torch.randn(2, 3, 16, 16), token_type_ids=(ids == 5).long())
    special = [5, int(ids[0, 4])]

    def by_hand(module, args, h):
        generated = h.shape[1] == 1
        steered = positions == "all" or generated == (positions == "generated")
        tokens = torch.isin(ids, torch.tensor(special)) if not generated else torch.zeros(2, 1, dtype=torch.bool)
        return ss.ops.steer(h, plan(), (~tokens).float() * steered)

    options = dict(max_new_tokens=3, do_sample=False, attention_mask=torch.ones_like(ids))
    model.generation_config.suppress_tokens = special
    handle = model.model.language_model.layers[0].register_forward_hook(by_hand)
    expected = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    handle.remove()
    with ss.steer(model, {0: plan()}, positions=positions, exclude_special_tokens=special):
        got = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(torch.stack(got.logits), torch.stack(expected.logits))
    assert ss.steer(model, {"blocks.1.hook_mlp_out": plan()})


def check_quantised(model):
    ids, width = prompts(), model.config.hidden_size
    plans = {point: plan(width=width, seed=i) for i, point in enumerate(("hook_resid_post", "attn.hook_z"))}
    with torch.no_grad():
        with changed_by_hand(model, with_the_op(plans)):
            expected = greedy_logits(model, ids)
        with ss.steer(model, at_sites(plans)):
            assert torch.equal(greedy_logits(model, ids), expected)
        assert not torch.equal(greedy_logits(model, ids), expected)


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_weights_quantised_by_torchao(name):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = build("llama")
    quantization.quantize_(model, getattr(quantization, name)())
    check_quantised(model)


@pytest.mark.parametrize(
    "settings", [dict(load_in_8bit=True), dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")], ids=str
)
def test_weights_quantised_by_bitsandbytes(settings, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config_class, arguments = families.CONFIGS["llama"]
    torch.manual_seed(0)
    wide = config_class(**arguments | dict(hidden_size=4 * WIDTH, intermediate_size=4 * WIDTH, initializer_range=0.2))
    transformers.LlamaForCausalLM(wide).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.BitsAndBytesConfig(**settings), device_map="cpu"
    )
    assert type(models.block(model, "llama", 0).self_attn.o_proj) is not torch.nn.Linear
    check_quantised(model.eval())
