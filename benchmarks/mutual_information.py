"""``ss.mutual_information`` beside scikit-learn: python -m sparsesteer.benchmarks.mutual_information

scikit-learn is timed on the first columns, with as many jobs as there are cores, and its time is extrapolated to all.
"""

import argparse
import json
import os
import sys
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

import sparsesteer as ss
from sparsesteer.benchmarks import machine

BLOCK = 1024
MOST_DIFFERENT = 1e-6  # nats


def main(arguments: list[str] | None = None) -> int:
    """Times both, prints one JSON row; 1 if the values differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=131072)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--density", type=float, default=0.1, help="share of codes that are not 0")
    parser.add_argument("--columns", type=int, default=2048, help="that scikit-learn is timed on")
    given = parser.parse_args(arguments)
    codes, labels = sparse_codes(given.samples, given.features, given.density)
    few = min(given.columns, given.features)
    head = first_columns(codes, few)

    ss.mutual_information(head[:, :64], labels)  # what is made once
    start = perf_counter()
    ours = ss.mutual_information(codes, labels, block=BLOCK)
    ours_s = perf_counter() - start
    start = perf_counter()
    theirs = scikit_learn(head, labels)
    theirs_s = (perf_counter() - start) * given.features / few

    difference = float(np.abs(ours[:few].numpy() - theirs).max())
    row = {
        **vars(given),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ours_s": round(ours_s, 2),
        "scikit_learn_s_extrapolated": round(theirs_s, 1),
        "ratio": round(theirs_s / ours_s, 1),
        "largest_difference": difference,
        **machine.facts("cpu"),
    }
    if difference > MOST_DIFFERENT:
        print(f"the values differ by {difference}: no times", file=sys.stderr)
        return 1
    print(json.dumps(row))
    return 0


def sparse_codes(n_samples: int, n_features: int, density: float) -> tuple[Tensor, np.ndarray]:
    """(codes [n, F] in CSR, labels [n]): active features as by chance, some a little stronger in one class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (n_samples,), generator=generator)
    rows = [(torch.rand(n_features, generator=generator) < density).nonzero().flatten().int() for _ in range(n_samples)]
    starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).int()
    features = torch.cat(rows)
    classes = torch.repeat_interleave(labels, starts.diff())
    values = torch.rand(len(features), generator=generator) + 0.3 * classes * (features % 7 == 0)
    shape = n_samples, n_features
    return torch.sparse_csr_tensor(starts, features, values, shape, check_invariants=False), labels.numpy()


def first_columns(codes: Tensor, count: int) -> Tensor:
    """Dense [n, count]."""
    starts, features, values = codes.crow_indices().long(), codes.col_indices().long(), codes.values()
    rows, kept = torch.repeat_interleave(starts.diff()), features < count
    dense = torch.zeros(codes.shape[0], count)
    dense[rows[kept], features[kept]] = values[kept]
    return dense


def scikit_learn(codes: Tensor, labels: np.ndarray) -> np.ndarray:
    """Block after block, as ours is defined."""
    from sklearn.feature_selection import mutual_info_classif

    blocks = codes.split(BLOCK, dim=1)
    found = [mutual_info_classif(each.numpy(), labels, random_state=0, n_jobs=os.cpu_count()) for each in blocks]
    return np.concatenate(found)


if __name__ == "__main__":
    sys.exit(main())
