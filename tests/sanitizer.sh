#!/usr/bin/env bash
# Builds the CPU kernels with the address and undefined-behaviour sanitizers and runs tests on that build:
#   PYTHON=.venv/bin/python tests/sanitizer.sh tests/test_*_native.py
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
build=build/sanitizer
mkdir -p "$build"
SPARSESTEER_SANITIZE=1 SPARSESTEER_BUILD=cpu "$python" setup.py --quiet build \
  --build-lib "$build" --build-temp "$build/objects" >"$build/build.log" 2>&1 || { tail -n 40 "$build/build.log"; exit 1; }

# leaks are left out: the interpreter itself frees nothing at its end
export ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-} UBSAN_OPTIONS=print_stacktrace=1:${UBSAN_OPTIONS:-}
# the package of this folder, which has no sanitizers, must not come first
export PYTHONPATH=$build PYTHONSAFEPATH=1
# the runtime must come before everything that python loads; so must the C++ library, which it watches
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)"
"$python" -c 'import torch, sparsesteer._C' # tests skip a build that does not load
exec "$python" -m pytest -q -p no:cacheprovider "$@"
