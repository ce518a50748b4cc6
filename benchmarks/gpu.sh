#!/usr/bin/env bash
# One call on a bare CUDA machine, from the repository's root: builds, tests, sanitizes and times every op.
#   OUT=some/folder benchmarks/gpu.sh [--peers DIR]        (the default of OUT is benchmarks/results/local)
# --peers DIR: a folder of prepared wheels of competitors (sae-lens, eai-sparsify and what they import), installed
# without network into OUT; the rows of competitors that are not there are left out by name.
# Needs torch with CUDA, Triton, pytest and nvcc; no network, and neither typer nor rich. Under 9 minutes. Ends with a
# summary; a step that fails does not stop the later ones, and the exit code is the number of failed steps.
# Most of it has never run on a GPU yet; on a machine without one the CUDA steps are skipped.
set -uo pipefail

out=${OUT:-benchmarks/results/local}
python=${PYTHON:-python3}
peers=
while (($#)); do
  case $1 in
    --peers) peers=${2:?--peers needs a folder}; shift 2 ;;
    *) echo "unknown option $1; usage: benchmarks/gpu.sh [--peers DIR]" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
summary=$out/summary.txt
: >"$summary"

# step NAME SECONDS COMMAND...: at most so many seconds, everything it prints in NAME.log
step() {
  local name=$1 limit=$2 started=$SECONDS code
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  if ((code == 0)); then
    echo "ok       $name ($((SECONDS - started)) s)" >>"$summary"
  elif [[ $code == 5 && $* == *pytest* ]]; then
    skip "$name" "no test is meant for this machine"
  else
    echo "FAILED   $name (exit $code, $((SECONDS - started)) s): $(tail -n 1 "$out/$name.log")" >>"$summary"
  fi
}

skip() { echo "skipped  $1: $2" >>"$summary"; }

# bench NAME SECONDS OPTION...: one benchmark into NAME.json
bench() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$python" -m "$@" --json "$out/$name.json"
}

cuda_missing=$("$python" -c 'import torch; print("" if torch.cuda.is_available() else "no CUDA device")') ||
  cuda_missing="torch does not load"
nvcc=$(command -v nvcc || ls /usr/local/cuda*/bin/nvcc 2>/dev/null | tail -n 1)
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
if [[ -n $nvcc ]]; then
  CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(readlink -f "$nvcc")")")}
  export CUDA_HOME
fi

if [[ -n $peers ]]; then
  step peers 15 "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$out/peers" "$peers"/*.whl
  PYTHONPATH=$PYTHONPATH:$out/peers
fi

MAX_JOBS=${MAX_JOBS:-$(nproc)}
export MAX_JOBS
choice=cuda build_limit=140
if [[ -n $cuda_missing || -z $nvcc ]]; then
  skip build_cuda "${cuda_missing:-no nvcc}"
  choice=cpu
  [[ -z $cuda_missing ]] || build_limit=500 # nothing but the build is left
fi
step "build_$choice" "$build_limit" env SPARSESTEER_BUILD=$choice "$python" setup.py build_ext --inplace
step versions 10 "$python" -c 'import json; from sparsesteer.benchmarks import machine
import torch; print(json.dumps(machine.facts("cuda" if torch.cuda.is_available() else "cpu"), indent=1))'

# Tests wait for compilers more than for the device: all files at once. With the extension, few tokens take the
# hand-written kernels; SPARSESTEER_BACKEND=triton is the package without it.
if [[ -n $cuda_missing ]]; then
  for name in gpu_tests triton_tests memcheck benchmarks; do skip "$name" "$cuda_missing"; done
else
  for file in tests/test_*_gpu.py; do
    name=$(basename "$file" .py)
    step "$name" 90 "$python" -m pytest -q -m gpu "$file" &
    [[ $name == test_cuda_gpu ]] || # the hand-written kernels are all it is about
      step "${name}_by_triton" 90 env SPARSESTEER_BACKEND=triton "$python" -m pytest -q -m gpu "$file" &
  done
  for file in tests/test_*_triton.py; do
    step "$(basename "$file" .py)" 90 env SPARSESTEER_BACKEND=triton "$python" -m pytest -q -m triton "$file" &
  done
  wait
  if [[ -z $sanitizer ]]; then
    skip memcheck "no compute-sanitizer"
  else
    for file in tests/test_*_gpu.py; do
      step "memcheck_$(basename "$file" .py)" 40 "$sanitizer" --tool memcheck --error-exitcode 1 --require-cuda-init no \
        "$python" -m pytest -q -m gpu "$file" -k "in_place or graph" &
    done
    wait
  fi
  # From here on nothing else runs. A call is timed within replays of a CUDA graph. Each file of rows is written on its
  # own, so that a slow benchmark does not take the others along.
  for shape in 576,4608 2304,16384; do
    bench "steer_$shape" 35 sparsesteer.benchmarks.bench_steer --quick --shape "$shape"
  done
  for op in encode decode steer_topk steer_reconstruct steer_slots activations; do
    bench "$op" 20 "sparsesteer.benchmarks.bench_$op" --quick
  done
  export SPARSESTEER_BACKEND=triton
  bench steer_by_triton 20 sparsesteer.benchmarks.bench_steer --quick --shape 2304,16384 --tokens 1 --tokens 8
  bench steer_slots_by_triton 15 sparsesteer.benchmarks.bench_steer_slots --quick --tokens 1 --tokens 8
  unset SPARSESTEER_BACKEND
  bench decoding 25 sparsesteer.benchmarks.bench_decoding
fi

cat "$summary"
exit "$(grep -c ^FAILED "$summary")"
