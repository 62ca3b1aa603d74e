# One environment (.venv) for everything. DEVICE=cpu|cuda picks the set; TORCH_INDEX points at another index for torch.
DEVICE ?= cpu
TORCH_INDEX ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)

BIN := .venv/bin
STAMP := .venv/installed-$(DEVICE)
DEMO := runs/demo

.PHONY: install demo doctor test test-slow coverage check audit clean

install: $(STAMP)

$(STAMP): pyproject.toml deploy/constraints.txt deploy/install.sh $(wildcard hse_dist/native/*.cpp hse_dist/native/*.h)
	PYTHON="$(PYTHON)" DEVICE="$(DEVICE)" TORCH_INDEX="$(TORCH_INDEX)" VENV=.venv deploy/install.sh
	@rm -f .venv/installed-*
	@touch $@

# standard output is the result as JSON, standard error the progress and the table
demo: install
	@mkdir -p $(DEMO)
	$(BIN)/hse-dist demo configs/ml-100k.toml --folder $(DEMO) > $(DEMO)/result.json

# what of this machine and installation works, and what to do about the rest
doctor: install
	$(BIN)/python -m hse_dist.cli doctor

test: doctor
	$(BIN)/python -m pytest

test-slow: install
	HYPOTHESIS_PROFILE=anew $(BIN)/python -m pytest -m slow

# the ordinary tests, and what of the package they reach
coverage: install
	$(BIN)/python -m pytest --cov --cov-report=term --cov-report=html:runs/coverage

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# known vulnerabilities of the pinned versions: asks the package index's database, so it needs the network, and is no part
# of `make test`. In an environment of its own, as it must not change what it looks at.
AUDIT := build/audit
audit:
	@test -x $(AUDIT)/bin/pip-audit || ( $(PYTHON) -m venv $(AUDIT) && \
	    $(AUDIT)/bin/python -m pip install --disable-pip-version-check --quiet pip-audit==2.10.1 )
	$(AUDIT)/bin/pip-audit --requirement deploy/constraints.txt --no-deps --disable-pip --strict --progress-spinner off

clean:
	rm -rf .venv runs .coverage* .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
	find hse_dist jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
