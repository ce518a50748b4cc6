#!/usr/bin/env bash
# One call on a bare CUDA machine, from the repository's root: builds, tests, sanitizes and times `steer`.
#   OUT=some/folder benchmarks/gpu.sh        (the default is benchmarks/results/local)
# Needs torch with CUDA, Triton, pytest and nvcc's folder; no network, and neither typer nor rich. Ends with a summary;
# a step that fails does not stop the later ones, and the exit code is the number of failed steps.
# It has never run on a GPU yet; on a machine without one the CUDA steps are skipped.
set -uo pipefail

out=${OUT:-benchmarks/results/local}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
summary=()
failed=0

# step NAME SECONDS COMMAND...: at most so many seconds, everything it prints in NAME.log
step() {
  local name=$1 limit=$2 started=$SECONDS code
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  if ((code == 0)); then
    summary+=("ok       $name ($((SECONDS - started)) s)")
  else
    ((failed++))
    summary+=("FAILED   $name (exit $code, $((SECONDS - started)) s): $(tail -n 1 "$out/$name.log")")
  fi
}

skip() { summary+=("skipped  $1: $2"); }

cuda_missing=$("$python" -c 'import torch; print("" if torch.cuda.is_available() else "no CUDA device")') ||
  cuda_missing="torch does not load"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)

step versions 30 "$python" -c 'import json; from sparsesteer.benchmarks import machine
import torch; print(json.dumps(machine.facts("cuda" if torch.cuda.is_available() else "cpu"), indent=1))'
step build 120 env SPARSESTEER_BUILD=cpu MAX_JOBS="${MAX_JOBS:-$(nproc)}" "$python" setup.py build_ext --inplace
step native_tests 40 "$python" -m pytest -q -x tests/test_steer_native.py
if [[ -n $cuda_missing ]]; then
  for name in gpu_tests memcheck bench_steer bench_decoding; do skip "$name" "$cuda_missing"; done
else
  step gpu_tests 120 "$python" -m pytest -q -m gpu tests/test_steer_gpu.py
  if [[ -z $sanitizer ]]; then
    skip memcheck "no compute-sanitizer"
  else
    step memcheck 50 "$sanitizer" --tool memcheck --error-exitcode 1 "$python" -m pytest -q -m gpu \
      tests/test_steer_gpu.py -k "test_in_place"
  fi
  # each width writes its own file, so that a slow one does not take the other's rows along
  for shape in 576,4608 2304,16384; do
    step "bench_steer_$shape" 65 "$python" -m sparsesteer.benchmarks.bench_steer --quick --shape "$shape" \
      --json "$out/bench_steer_$shape.json"
  done
  step bench_decoding 45 "$python" -m sparsesteer.benchmarks.bench_decoding --json "$out/bench_decoding.json"
fi

printf '%s\n' "${summary[@]}" | tee "$out/summary.txt"
exit "$failed"
