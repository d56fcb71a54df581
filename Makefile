# Everything a person needs: `make demo` and `make test`. Nothing outside this folder is touched.
PYTHON ?= python3
VENV   ?= $(CURDIR)/.venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: env test-env demo test test-slurm test-faults fuzz bench bench-scale docs lint dry-run format lock clean
.DELETE_ON_ERROR:

env: $(VENV)/.env ## set up the virtual environment with the locked dependencies
test-env: $(VENV)/.test-env ## the same, with what the tests need

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("chunkcal needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.env: $(VENV)/bin/python requirements.lock pyproject.toml
	@echo "installing the locked dependencies into $(VENV)"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test-env: $(VENV)/.env requirements-test.lock
	@$(PIP) install --require-hashes -r requirements-test.lock
	@touch $@

demo: env ## simulate two observations, calibrate them, say what was gained
	@$(BIN)/snakemake --cores 2
	@$(BIN)/chunkcal summary results

test: test-env ## run all tests
	@$(BIN)/python -m pytest

test-slurm: test-env ## run the pipeline on a real SLURM of its own, from Debian's packages (installed if missing)
	@missing=; for tool in slurmctld slurmd munged qsub sshd; do PATH=$$PATH:/usr/sbin command -v $$tool >/dev/null || missing=yes; done; \
	[ -z "$$missing" ] || { \
		run=; [ "$$(id -u)" = 0 ] || run=sudo; \
		$$run apt-get -qq update && \
		$$run env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends slurm-wlm munge slurm-wlm-torque openssh-server; }
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/slurm

test-faults: test-env ## try every fault as often as docs/faults.md says (half an hour)
	@CHUNKCAL_FAULT_REPEATS=full $(BIN)/python -m pytest tests/faults

fuzz: test-env ## try 2,000 configurations that nobody would write
	@CHUNKCAL_FUZZ_CASES=2000 $(BIN)/python -m pytest tests/fuzz

bench: test-env ## the pipeline beside bare DP3 on the same input and cores (an hour, best on a quiet machine)
	@$(BIN)/python benchmarks/bench.py --size-mb 620 --n-patches 4 --chunks 20

bench-scale: test-env ## how planning, jobs and merging grow with the number of chunks (a quarter of an hour)
	@$(BIN)/python benchmarks/scale.py

docs: test-env ## build the documentation into docs/_build; warnings are errors
	@$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build

lint: test-env ## check style of Python, rules and workflow
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile workflow/rules
	@$(BIN)/snakemake --lint

dry-run: env ## show what a run would do
	@$(BIN)/snakemake --cores 2 --dry-run
	@$(BIN)/snakemake --profile slurm --dry-run

format: test-env ## rewrite Python and rules in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/snakefmt Snakefile workflow/rules

lock: test-env ## choose new versions within the bounds of pyproject.toml
	$(PIP) install uv
	cd $(CURDIR) && $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet --upgrade --extra build -o requirements.lock
	cd $(CURDIR) && $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet --constraint requirements.lock --extra build --extra test --extra docs -o requirements-test.lock

clean: ## remove everything that was made, except the virtual environment
	rm -rf results demo logs docs/_build benchmarks/results .snakemake
	find benchmarks -name '*.tsv' -delete
	find benchmarks -type d -empty -delete
