"""Engines of vLLM in this process on the tiny Llama, for tests that compare them with Hugging Face."""

import contextlib
import os
from pathlib import Path

os.environ.update(  # read when vllm is imported
    VLLM_ENABLE_V1_MULTIPROCESSING=os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",  # its threads spin, and wait for each other on a busy machine
)

import pytest
import serving_cases
from serving_cases import expected, prompts, tiny_llama, write_saes

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, SpecStore, register, status, vllm_plugin

WHY_NOT = Path(__file__).resolve().parents[1] / ".venv-vllm" / "why_not"
vllm = pytest.importorskip(
    "vllm", reason=f"no vLLM: {WHY_NOT.read_text().strip() if WHY_NOT.exists() else 'make .venv-vllm/installed'}"
)

NEW = 20  # tokens
WISHES = [
    *(None, *serving_cases.specs(), "set@-0.5", "add-generated@0.7", "two-sites-prompt@2", "gated@0.5"),
    *("set", None, "last@2", "indices", "from-second@0.3"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The tiny Llama, and its files and its SAEs' as an engine takes them."""
    folder = tmp_path_factory.mktemp("vllm")
    model = tiny_llama()
    model.save_pretrained(folder / "model")
    return model, {"model": str(folder / "model"), "sites": write_saes(folder)}


@pytest.fixture(scope="module")
def wanted(files):
    """A prompt for every wish, and what Hugging Face generates."""
    given = prompts(len(WISHES))
    return given, [expected(files[0], prompt, wish, NEW) for prompt, wish in zip(given, WISHES, strict=True)]


@contextlib.contextmanager
def engine(files, *, steering=None, declared=True, specs=None, **options):
    """An engine in which all specs are registered under their names; one at a time in a process."""
    specs = serving_cases.specs() if specs is None else specs
    vllm_plugin.register()  # vLLM does so itself where the package is installed
    given = {
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 16,
        "block_size": 32,
    } | options
    config = {"sparsesteer": {"sites": files["sites"], **(steering or {})}} if declared else {}
    llm = vllm.LLM(model=files["model"], additional_config=config, **given)
    try:
        for name, spec in specs.items() if declared else ():
            register(llm, spec, name)
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        vllm.distributed.cleanup_dist_env_and_memory()


def generate(llm, prompts, wishes, new_tokens):
    """Greedy outputs of a batch of which every request has a wish of its own."""
    params = [
        vllm.SamplingParams(
            temperature=0,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=None if wish is None else {"sparsesteer": wish},
        )
        for wish in wishes
    ]
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)


def tokens(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


def refusal(llm, wish):
    """What the engine says to a wish that it does not grant."""
    try:
        generate(llm, [[5, 6, 7]], [wish], 2)
    except Exception as error:
        return str(error)
    return "nothing"


def check_served(files, folder, plans, sites, wishes, positions, new_tokens=12):
    """Plans by name, served out of a folder: a request for one gets what Hugging Face generates under the hook.

    Everything is asked twice, the second time from the prefix cache.
    """
    for name, plan in plans.items():
        SpecStore(folder).add(ServedSpec(plan, positions), name)
    given = prompts(len(wishes), 20, 90)
    steering = {"specs": str(folder)}
    model, declared = files[0], {"model": files[1]["model"], "sites": sites}
    with engine(declared, steering=steering, specs={}, max_num_batched_tokens=64) as llm:
        for _ in range(2):
            found = tokens(generate(llm, given, wishes, new_tokens))
            for prompt, wish, got in zip(given, wishes, found, strict=True):
                plain = expected(model, prompt, None, new_tokens)
                if wish is None:
                    assert got == plain
                    continue
                name, _, strength = wish.partition("@")
                with ss.steer(model, plans[name], float(strength or 1), positions=positions):
                    want = expected(model, prompt, None, new_tokens)
                assert got == want != plain
        assert status(llm)["unsteered_requests"] == 0
