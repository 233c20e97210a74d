# `make study` and `make test` create the virtual environment and install the dependencies.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= studies/default
# The extra that the tests need: `dev` for all tests, `core` for the tests of the core.
EXTRA ?= dev

.PHONY: help study test test-slow test-postgres test-optional lint docs bench parity peers golden clean

help:
	@echo "make study          develop, evaluate and report: the page is $(OUT)/report.html"
	@echo "make test           the test suite"
	@echo "make test-slow      the tests that take minutes"
	@echo "make test-postgres  the tests of the server with PostgreSQL as its database"
	@echo "make test-optional  the tests of packages that need environments of their own"
	@echo "make lint           ruff and pyright"
	@echo "make docs           the documentation site: docs/_build/html/index.html"
	@echo "make bench          the main benchmarks, one JSON line per figure"
	@echo "make peers          environments of CTranslate2 and llama.cpp for benchmarks/lm_generate.py"
	@echo "make parity         language models beside torch and transformers, in an environment of their own"

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "ontogeny needs Python 3.11, 3.12 or 3.13; choose one with make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA)]'
	@touch $@

study: $(VENV)/.base
	$(BIN)/ontogeny study --out $(OUT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal $(TESTS)

test-slow: $(VENV)/.dev
	XLA_FLAGS=--xla_force_host_platform_device_count=2 $(BIN)/python -m pytest -q -n auto -m slow

# Needs the programs of PostgreSQL; the tests start a server of their own.
test-postgres: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal --postgres tests/test_serve_*.py tests/test_guarantees.py

# Packages that `dev` cannot hold: rejax brings a nightly build, craftax and minigrid need different packages with one
# module name, and jax-envelope needs Python 3.12. Each group has an environment of its own, and exactly the tests that
# use its packages, slow ones included.
OPTIONAL := .venv-optional
baselines_EXTRAS := dev,baselines,minigrid
baselines_PACKAGES := rejax,minigrid
craftax_EXTRAS := dev,craftax,xminigrid
craftax_PACKAGES := craftax,xminigrid
envelope_EXTRAS := dev,envelope
envelope_PACKAGES := envelope
ray_EXTRAS := dev,ray
ray_PACKAGES := ray
PYENV_3_12 := $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.12.*/bin/python3.12)
PYTHON_3_12 ?= $(or $(lastword $(PYENV_3_12)),python3.12)

OPTIONAL_TESTS = $(shell grep -lE 'mark\.(needs|uses)_package' tests/test_*.py)

.PRECIOUS: $(OPTIONAL)/%/.installed
$(OPTIONAL)/%/.installed: pyproject.toml constraints.txt constraints-optional.txt
	$(if $(filter envelope,$*),$(PYTHON_3_12),$(PYTHON)) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-c constraints-optional.txt -e '.[$($*_EXTRAS)]'
	@touch $@

test-optional-%: $(OPTIONAL)/%/.installed
	$(OPTIONAL)/$*/bin/python -m pytest -q -n auto --dist worksteal -m '' --packages $($*_PACKAGES) \
		$(or $(TESTS),$(OPTIONAL_TESTS))

test-optional: test-optional-baselines test-optional-craftax test-optional-ray
	@if $(PYTHON_3_12) -c 'import venv' 2> /dev/null; then $(MAKE) test-optional-envelope; \
		else echo "Python 3.12 is not installed: the tests of jax-envelope did not run"; fi

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/.docs: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/outer_loop.py
	$(BIN)/python benchmarks/published.py

# On most machines the torch wheel depends on gigabytes of CUDA packages; it is then installed only with CUDA=yes.
TORCH ?= torch==2.13.0
PARITY := .venv-parity

$(PARITY)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PARITY)
	@if $(PARITY)/bin/python -m pip install --disable-pip-version-check --dry-run '$(TORCH)' | grep -q nvidia- \
		&& [ "$(CUDA)" != yes ]; then \
		echo "'$(TORCH)' depends on CUDA packages here; name a CPU wheel with TORCH=... or set CUDA=yes"; exit 2; fi
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,parity]'
	@touch $@

parity: $(PARITY)/.installed
	ONTOGENY_REQUIRE_TORCH=1 $(PARITY)/bin/python -m pytest -q -n 0 tests/test_parity.py tests/test_harness.py \
		tests/test_serve_http.py::test_lm_eval_runs_on_the_server

# Each peer of benchmarks/lm_generate.py has an environment of its own. llama-cpp-python is compiled, which needs a
# compiler of C++ and takes minutes.
PEERS := .venv-peers

$(PEERS)/ctranslate2/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check ctranslate2==4.8.5 numpy safetensors
	@touch $@

$(PEERS)/llama-cpp/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-binary llama-cpp-python \
		llama-cpp-python==0.3.36 gguf==0.19.0 numpy safetensors
	@touch $@

peers: $(PEERS)/ctranslate2/.installed $(PEERS)/llama-cpp/.installed
	@echo "benchmarks/lm_generate.py --ctranslate2 $(PEERS)/ctranslate2/bin/python --llama-cpp $(PEERS)/llama-cpp/bin/python"

golden: $(PARITY)/.installed
	$(PARITY)/bin/python tests/golden/make_models.py
	$(PARITY)/bin/python tests/golden/make_harness.py
	$(PARITY)/bin/python tests/golden/make_chat.py

clean:
	rm -rf $(VENV) $(PARITY) $(PEERS) $(OPTIONAL) build .pytest_cache .ruff_cache .hypothesis
