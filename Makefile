# Two commands matter: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ROOT   := $(if $(filter 0,$(shell id -u)),,sudo -n)
# Images often forbid Python to keep compiled modules; every process then compiles thousands of them anew, for 10 s.
export PYTHONDONTWRITEBYTECODE :=
# A thread each: two processes with two threads each on two cores take half as long again. With `loadfile`, xdist cannot
# go on with a new process for one that has crashed: it would hang or fail in itself, so the run ends there.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0
UV     := VIRTUAL_ENV=$(CURDIR)/$(VENV) UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv

.PHONY: demo test test-fast chromium lint format lock bench-curate bench-sampler bench-trainer clean setup
setup: $(READY)

$(READY): requirements.lock requirements-cuda.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv==0.13.9
	$(UV) pip install --quiet --no-deps -r requirements.lock
	@# A CUDA build of torch declares the nvidia packages; a CPU build does not need their 4 GB.
	@if $(BIN)/python -c "import importlib.metadata as m, sys; sys.exit(not any('nvidia' in r for r in m.requires('torch')))"; \
	then $(UV) pip install --quiet --no-deps -r requirements-cuda.lock; fi
	$(UV) pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	$(BIN)/songmill models pull small demo
	$(BIN)/songmill demo --out demo

test: $(READY) chromium
	$(BIN)/songmill models pull small demo test smollm2-135m-instruct
	$(PYTEST)

# While one works: what starts no Ray and no browser and opens no model.
test-fast: $(READY)
	$(PYTEST) -m "not ray and not browser and not models and not slow"

# The browser that the tests of the page drive; Debian's, for which playwright needs no download of its own.
chromium:
	@command -v chromium > /dev/null || { $(ROOT) apt-get update --quiet && \
	  $(ROOT) apt-get install --quiet --yes --no-install-recommends chromium; } || \
	  echo "make: no chromium, the tests of the page will be skipped; install it with: sudo apt-get install chromium" >&2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Resolve pyproject.toml anew. torchaudio is declared by beat-this but its model code does not need it.
lock: $(READY)
	printf 'torchaudio ; sys_platform == "never"\n' > build-overrides.txt
	$(BIN)/uv pip compile --quiet pyproject.toml --all-extras --python-version 3.11 --override build-overrides.txt \
	  --no-emit-index-url --no-header --no-annotate -o build-lock.txt
	grep -vE '^(nvidia|cuda)' build-lock.txt > requirements.lock
	grep -E '^(nvidia|cuda)' build-lock.txt > requirements-cuda.lock
	rm -f build-overrides.txt build-lock.txt

bench-curate: $(READY)
	$(BIN)/songmill models pull small demo bench
	$(BIN)/python -m benchmarks.curate

bench-sampler: $(READY)
	$(BIN)/python -m benchmarks.sampler --markdown

# Needs the dataset of `make demo`.
bench-trainer: $(READY)
	$(BIN)/python -m benchmarks.trainer

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
