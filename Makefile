# `make demo` shows it, `make test` proves it, `make bench` measures it, `make soak` wears it out. Each makes its own environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

BENCH_VENV ?= .venv-bench
BENCH_ARGS ?=

.PHONY: demo test check unit test-versions torture soak bench environment clean

# With what the demo needs and nothing else, unless the whole environment is there.
DEMO_VENV := $(if $(wildcard $(VENV)/.installed),$(VENV),.venv-demo)

demo: $(if $(filter .venv-demo,$(DEMO_VENV)),.venv-demo/.installed)
	@$(DEMO_VENV)/bin/python -m demo

# Its last lines say which versions of torch and Python were tried, and which were not.
test: environment check unit
	$(BIN)/python tools/versions.py

# The core of the suite with the oldest versions that pyproject.toml promises, and with the newest ones, each in an
# environment of its own: gigabytes. VERSIONS=2.8.0-3.12 is another one; what is there once, `make test` uses, too.
VERSIONS ?= oldest-3.10 newest-3.13
test-versions:
	$(PYTHON) tools/versions.py $(VERSIONS)

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

# Most of what the suite installs nothing ever imports: byte code is made when it is needed.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) tools/environment.py $(VENV) dev --no-compile

.venv-demo/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON) here: install Python 3.10 or later"; exit 1; }
	@$(PYTHON) tools/environment.py .venv-demo demo

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
	rm -rf $(VENV) $(BENCH_VENV) .venv-torch-* .venv-demo demo-run benchmarks/output
