"""All benchmarks, without the libraries of the package's own command line: python -m sparsesteer.benchmarks.suite"""

import sys

from sparsesteer.benchmarks import (
    bench_activations,
    bench_decode,
    bench_encode,
    bench_steer,
    bench_steer_reconstruct,
    bench_steer_slots,
    bench_steer_topk,
    harness,
)

BENCHES = {
    bench.op: bench
    for bench in (
        bench_steer.BENCH,
        bench_encode.BENCH,
        bench_encode.SCREENED,
        bench_decode.BENCH,
        bench_steer_topk.BENCH,
        bench_steer_reconstruct.BENCH,
        bench_steer_slots.BENCH,
        bench_activations.BENCH,
        bench_activations.TOPK,
    )
}


if __name__ == "__main__":
    sys.exit(harness.main(*BENCHES.values()))
