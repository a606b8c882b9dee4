# Every target sets up .venv by itself; once that is done it takes no time. `make help` lists them.
#
#   PYTHON=python3.12            the interpreter that .venv is made with
#   TORCH_INDEX=URL              where to get torch from, e.g. PyTorch's own index of CPU builds
#   JOBS=2                       test processes

PYTHON ?= python3
JOBS ?= 2
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
CODE := $(wildcard src tests benchmarks examples)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs format clean

help:
	@echo "make demo    pictures from the model that ships with the package, into outputs/"
	@echo "make test    lint, types, import contracts and all tests"
	@echo "make lint    only the first three"
	@echo "make bench   side by side with diffusers"
	@echo "make docs    the documentation as HTML, into build/docs/"
	@echo "make format  rewrite the sources as the linter wants them"
	@echo "make clean   remove what the other targets made, .venv included"

# torch goes first and on its own, so that the index it comes from serves nothing else.
$(VENV)/.torch: constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "cannot make $(VENV): is the venv module installed (Debian: apt install python3-venv)?"; exit 1; }
	@echo "setting up $(VENV) (once)"
	@$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	@$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	@$(INSTALL) -e '.[docs]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	@HF_HUB_OFFLINE=1 $(BIN)/safelight generate --model fashion-mnist --steps 30 --seed 7 --output outputs --film-strip --gif

lint: $(VENV)/.test
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/docs
	@echo "open build/docs/index.html"

format: $(VENV)/.test
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) build dist outputs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
