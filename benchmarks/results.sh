#!/usr/bin/env bash
# Measures what README.md shows, an op and an SAE at a time, from the repository's root; then writes the README's part.
#   benchmarks/results.sh NAME [OP...]     rows go to benchmarks/results/NAME; all ops unless some are named
# RUN is put before every measurement, e.g. RUN="chrt -r 12" against other work on the machine. Commit first: every row
# carries the commit. An hour on 2 cores, where the two widest SAEs need 13 GB of memory.
set -euo pipefail

name=${1:?"usage: benchmarks/results.sh NAME [OP...]"}
shift
ops=("$@")
((${#ops[@]})) || ops=(steer encode decode steer_topk steer_reconstruct steer_slots activations)
python=${PYTHON:-python3}
tokens=(--tokens 1 --tokens 8 --tokens 32 --tokens 128 --tokens 512)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

for op in "${ops[@]}"; do
  for shape in 576,4608 2304,16384 2304,65536 4096,32768 3584,131072 4096,131072; do
    echo "$op $shape"
    # shellcheck disable=SC2086 # RUN is a command and its options
    ${RUN:-} "$python" -m "sparsesteer.benchmarks.bench_$op" --shape "$shape" "${tokens[@]}" \
      --json "benchmarks/results/$name/$op-${shape/,/-}.json" >/dev/null
  done
done
"$python" -m sparsesteer.benchmarks.readme
