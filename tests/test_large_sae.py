"""Plans out of large SAEs on disk: seconds and megabytes, in a process of its own."""

import json

import numpy as np
import pytest
import torch
from peak_memory import run_alone
from safetensors.torch import save_file

D, F, M = 2304, 131072, 64

PROGRAM = """
    import json, sys, time, torch
    import sparsesteer as ss
    from peak_memory import peak_kib
    features = json.loads(sys.argv[2])
    before = peak_kib()
    start = time.perf_counter()
    plan = ss.SAE.load_from_disk(sys.argv[1]).plan(ss.Edit.set({feature: 1.0 for feature in features}))
    seconds = time.perf_counter() - start
    grown = peak_kib() - before
    print(json.dumps({"seconds": seconds, "grown_mb": grown / 1024, "sums": plan.encoder.double().sum(-1).tolist()}))
"""


def write_sae(folder):
    """A jumprelu SAE in SAELens's format, W_enc [D, F] and W_dec [F, D] random, written a band at a time."""
    shapes = {"W_enc": [D, F], "W_dec": [F, D], "b_enc": [F], "b_dec": [D], "threshold": [F]}
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    band = torch.rand(1 << 22, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    with open(folder / "sae_weights.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for left in range(position, 0, -len(band)):
            file.write(band[:left])
    (folder / "cfg.json").write_text(json.dumps({"architecture": "jumprelu", "d_in": D, "d_sae": F}))


@pytest.mark.slow
def test_a_plan_reads_rows_and_columns_not_the_file(tmp_path):
    write_sae(tmp_path)
    features = list(range(5, F, F // M))
    for _ in range(2):  # the second finds the file in the page cache
        found = json.loads(run_alone(PROGRAM, str(tmp_path), json.dumps(features)))
    (tmp_path / "sae_weights.safetensors").unlink()
    band = torch.rand(1 << 22, generator=torch.Generator().manual_seed(0))
    places = (torch.arange(D)[None] * F + torch.tensor(features)[:, None]) % len(band)
    assert found["sums"] == band[places].double().sum(-1).tolist()
    assert found["grown_mb"] < 500, found
    assert found["seconds"] < 5, found
    print(f"{found['seconds']:.2f} s, {found['grown_mb']:.0f} MB")


PLAN_OF_EACH = """
    import json, sys, torch
    import sparsesteer as ss
    from peak_memory import peak_kib
    edit = ss.Edit.set({feature: 1.0 for feature in range(3, 32768, 512)})
    before = peak_kib()
    sums = [ss.SAE.load_from_disk(path).plan(edit).encoder.double().sum().item() for path in sys.argv[1:]]
    print(json.dumps({"grown_mb": (peak_kib() - before) / 1024, "sums": sums}))
"""


@pytest.fixture
def large_files(tmp_path):
    """The same SAE of two matrices of 64 MB in an npz archive, a file of torch.save, and a safetensors file of rows."""
    d, f = 512, 32768
    encoder, vector = torch.arange(d * f, dtype=torch.float32).view(f, d) % 1009, torch.zeros(f)
    decoder, b_dec = torch.ones(f, d), torch.zeros(d)
    qwen = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
    for folder in (tmp_path / "npz", tmp_path / "sparsify", qwen):
        folder.mkdir()
    given = {"W_enc": encoder.T.numpy(), "W_dec": decoder.numpy(), "b_enc": vector.numpy(), "b_dec": b_dec.numpy()}
    np.savez(tmp_path / "npz" / "params.npz", threshold=vector.numpy(), **given)
    state = {"W_enc": encoder, "W_dec": decoder.T.contiguous(), "b_enc": vector, "b_dec": b_dec}
    torch.save(state, qwen / "layer0.sae.pt")
    rows = {"encoder.weight": encoder, "W_dec": decoder, "encoder.bias": vector, "b_dec": b_dec}
    save_file(rows, tmp_path / "sparsify" / "sae.safetensors")
    (tmp_path / "sparsify" / "cfg.json").write_text(json.dumps({"d_in": d, "num_latents": f, "k": 32}))
    want = encoder[3::512].double().sum().item()
    return want, [str(path) for path in (tmp_path / "npz", qwen / "layer0.sae.pt", tmp_path / "sparsify")]


def test_no_container_is_read_whole_for_a_plan(large_files):
    want, paths = large_files
    found = json.loads(run_alone(PLAN_OF_EACH, *paths))
    assert found["sums"] == [want] * 3
    assert found["grown_mb"] < 60, found  # each file has 134 MB; a band of one has 16
