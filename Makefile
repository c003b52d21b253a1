# The two commands of the README, and what they stand on. `make help` lists them.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUTPUT ?= demo
# Files of tests are dealt to so many processes; most tests keep one core busy.
WORKERS ?= 2

# One thread per rank where two ranks share two cores; the optimized kernels oversubscribe otherwise.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format bench clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

venv: $(VENV)/.installed ## create the virtual environment with all packages (once)

# Without a GPU the default torch would bring gigabytes of CUDA packages. uv knows where the CPU
# build is; where that place is out of reach, pip takes what its own configuration offers.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || sh .ci/install_torch $(BIN)
	$(BIN)/python -m pip install --quiet --editable '.[dev,dali,mpi]'
	@touch $@

demo: venv ## train the tiny model on both tasks, sample it, show numbers and pictures (demo/)
	$(BIN)/python -m sat_udpdiff.tiny.demo --output $(OUTPUT)

test: venv ## run all tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: venv ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: venv ## rewrite the files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv ## run the benchmarks side by side (see tests/benchmarks/README.md)
	@set -e; for bench in tests/benchmarks/bench_*.py; do $(BIN)/python $$bench; done

clean: ## remove the virtual environment, caches and the demonstration
	rm -rf $(VENV) $(OUTPUT) .pytest_cache .ruff_cache build *.egg-info
