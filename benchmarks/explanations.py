"""Time and memory of explaining every feature of a large SAE, beside the dense computation on a part of it.

    python -m sparsesteer.benchmarks.explanations --json benchmarks/results/explanations.json

The SAE is random and tied: W_enc and W_dec are two views of one matrix, so that the machine holds it once. "Extra
memory" is the peak of the process while it explains, less what it held before. The dense computation makes all F x W
scores as the formulas are written; it is measured on a part of the features, and what the whole would take is that
times F / part.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sparsesteer as ss
from sparsesteer.benchmarks.machine import facts
from sparsesteer.files import write_whole
from sparsesteer.methods.mi.scores import DEFAULT
from sparsesteer.word_index import ExplanationFile


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """A norm without a gain."""
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


def sae_of(n_features: int, width: int) -> ss.SAE:
    """Random and tied."""
    rows = torch.empty(n_features, width)
    generator = torch.Generator().manual_seed(0)
    for part in rows.split(4096):
        part.normal_(generator=generator)
    return ss.SAE(W_enc=rows.T, W_dec=rows, activation=ss.ReLU())


def dense(rows: torch.Tensor, embeddings: torch.Tensor, count: int) -> torch.Tensor:
    """The best words of features [f, D] by the whole matrix."""
    s = rms_norm(rows) @ embeddings.T
    p_word, p_feature = s.softmax(1), s.softmax(0)
    return (p_word.log() + p_feature.log()).topk(count, dim=1).indices


def reset_peak() -> int:
    """Begin the peak anew; what the process holds now. Linux alone knows how."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    """A line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """(result, seconds by the clock and of the processor, extra megabytes at the peak)"""
    before = reset_peak()
    begun, busy = time.perf_counter(), time.process_time()
    result = work()
    seconds, of_processor = time.perf_counter() - begun, time.process_time() - busy
    extra = (status_bytes("VmHWM") - before) / 1e6
    return result, {"seconds": seconds, "processor_seconds": of_processor, "extra_megabytes": extra}


def looked_up(found: ss.Explanations) -> tuple[float, float]:
    """(milliseconds to open the stored file and find the features of one word, its megabytes)"""
    with tempfile.TemporaryDirectory() as folder:
        path = found.save(Path(folder) / "explanations.safetensors")
        times = []
        for word in range(5):
            begun = time.perf_counter()
            matches = ExplanationFile(path).search(str(17 * word))
            times.append(time.perf_counter() - begun)
            assert matches
        return round(1000 * sorted(times)[2], 1), round(path.stat().st_size / 1e6, 1)


def rounded(measures: dict[str, float], factor: float = 1.0) -> dict[str, float]:
    """All of them times a factor, to what can be read."""
    return {name: round(value * factor, 1) for name, value in measures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=131_072)
    parser.add_argument("--words", type=int, default=5_000)
    parser.add_argument("--width", type=int, default=4_096)
    parser.add_argument("--part", type=int, default=8_192, help="features of the dense computation")
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(1)
    unembedding = torch.randn(args.words, args.width, generator=generator) / args.width**0.5
    sae = sae_of(args.features, args.width)
    words = [[i] for i in range(args.words)]
    found, whole = measured(lambda: ss.explain(sae, unembedding, rms_norm, words, count=args.count))
    rows = sae.whole_decoder()[0][: args.part]
    part = ss.SAE(W_enc=rows.T, W_dec=rows, activation=ss.ReLU())
    ours, ours_on_part = measured(lambda: ss.explain(part, unembedding, rms_norm, words, count=args.count))
    wanted, dense_on_part = measured(lambda: dense(rows, unembedding, args.count))
    agreed = (ours.words.view(args.part, -1) == wanted).float().mean().item()
    if agreed < 0.999:
        sys.exit(f"the two agree on {agreed:.2%} of the words: no time is printed")
    lookup, size = looked_up(found)
    row = {
        **facts("cpu"),
        "load_at_the_end": Path("/proc/loadavg").read_text().split()[0],
        "features": args.features, "words": args.words, "width": args.width, "score": DEFAULT,
        "explain": rounded(whole),
        "lookup_milliseconds": lookup, "file_megabytes": size,
        "part": args.part, "agreed_on_part": agreed,
        "explain_part": rounded(ours_on_part), "dense_part": rounded(dense_on_part),
        "dense_extrapolated": rounded(dense_on_part, args.features / args.part),
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    if args.json:
        write_whole(args.json, (json.dumps(row, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
