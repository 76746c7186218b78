# `make demo` shows it, `make test` proves it, `make bench` measures it, `make soak` wears it out. Each makes its own environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

BENCH_VENV ?= .venv-bench
BENCH_ARGS ?=

.PHONY: demo test check unit torture soak bench environment clean

demo: environment
	$(BIN)/python demo/demo.py

test: environment check unit

# Quality gates: lint, format, types, the rooms.
check: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Four at a time on two cores: jobs on Slurm, and lives that end, mostly wait. Byte code is kept, since each of some thousand processes would
# compile it again.
unit: environment
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 4 --dist worksteal

# All of what the suite has a part of: the matrix of failpoints and faults, fuzzing, the interleavings of the commit.
torture: environment
	TORTURE=full PYTHONDONTWRITEBYTECODE= $(BIN)/pytest tests/torture tests/fuzz tests/checkpoint/test_interleavings.py \
		tests/checkpoint/test_power_loss.py -n 3

# Hundreds of interruptions of 4 ranks under the daemon: an hour, or SOAK_ARGS="--seconds 600".
SOAK_ARGS ?=
soak: environment
	$(BIN)/python -m tests.torture.soak $(SOAK_ARGS)

# About 20 minutes on 2 cores; BENCH_ARGS=--full for more, BENCH_ARGS=--quick to see whether all works.
bench: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m benchmarks.run $(BENCH_ARGS)

environment: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "autoresume needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The peers come on top of the project's environment, which stays as it is; torch is the same one for all. A peer that
# can't be installed is left out here, and is named in the results.
$(BENCH_VENV)/.installed: $(VENV)/.installed benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(BENCH_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	grep -v '^#' benchmarks/requirements.txt | while read -r peer; do \
		$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt "$$peer" \
			|| echo "$$peer can't be installed: it will be missing in the results"; \
	done
	touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) demo-run benchmarks/output
