"""A plan out of an SAE of 2.4 GB on disk: seconds and megabytes, in a process of its own."""

import json

import pytest
import torch
from peak_memory import run_alone

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
