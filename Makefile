# From a name to a chatting page: make run NAME="Ada". Everything lands in .venv/, models/ and out/.

PYTHON ?= python3
NAME ?=
OWNER ?=
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
BIN := .venv/bin
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder
export NAME OWNER

.PHONY: run assistant install install-dev test check

run: assistant  ## everything, then the page on http://127.0.0.1:7860
	@$(BIN)/python app.py

assistant: install  ## everything but opening the page; the result is in out/
	@test -n "$$NAME" || { echo 'error: no name given; write: make run NAME="Ada"' >&2; exit 2; }
	@$(BIN)/python scripts/make_assistant.py --name "$$NAME" --owner "$$OWNER"

install: .venv/installed  ## the environment alone

install-dev: .venv/installed-dev

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo 'error: Python 3.11, 3.12 or 3.13 is needed; give one: make install PYTHON=python3.12' >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: pyproject.toml | .venv/python
	$(BIN)/python -m pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train,gguf]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train,gguf,publish,dev]'
	@touch $@

test: install-dev  ## the tests that need no GPU, no rehearsed host and, but for one, no browser
	$(BIN)/python -m pytest $(SPREAD) -m "not gpu and not alone and not rehearsal and (smoke or not browser)"
	$(BIN)/python -m pytest -m alone

check: install-dev  ## what CI runs: lint, format, types, all tests but those that need a GPU
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(SPREAD) -m "not gpu and not alone"
	$(BIN)/python -m pytest -m alone
