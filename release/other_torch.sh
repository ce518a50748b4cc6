#!/usr/bin/env bash
# Runs goals of the Makefile under another torch, in a copy of the tree with an environment of its own:
#   release/other_torch.sh 2.14.1 suites
# The copy lies in build/torch2.14.1 and holds what git would commit now. Its constraints name that torch; Triton is
# left to what that torch asks for. A CUDA build of torch takes 5 to 7 GB; `make clean` removes all of it.
set -euo pipefail
cd "$(dirname "$0")/.."

version=${1:?usage: release/other_torch.sh TORCH_VERSION GOAL...}
shift
copy=build/torch$version
mkdir -p "$copy"
find "$copy" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
# a file that was removed but is still in the index is left out
git ls-files -z --cached --others --exclude-standard --deduplicate |
  tar --create --null --files-from=- --ignore-failed-read 2>/dev/null | tar --extract --directory "$copy"
sed -i -e "s/^torch==.*/torch==$version/" -e '/^triton==/d' "$copy/constraints.txt"
rm -f "$copy/.venv/installed" # the extension is compiled anew for this copy
exec make --directory "$copy" "$@"
