# One environment (.venv) for everything. DEVICE=cpu|cuda picks the set; TORCH_INDEX points at another index for torch.
DEVICE ?= cpu
TORCH_INDEX ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)

BIN := .venv/bin
STAMP := .venv/installed-$(DEVICE)
DEMO := runs/demo

.PHONY: install demo doctor test test-slow coverage check clean

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
	$(BIN)/python -m pytest -m slow

# the ordinary tests, and what of the package they reach
coverage: install
	$(BIN)/python -m pytest --cov --cov-report=term --cov-report=html:runs/coverage

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs .coverage* .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
	find hse_dist jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
