# SPDX-License-Identifier: GPL-2.0-or-later
# `make demo` runs the main job, `make test` the tests; each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test soak lint types snippets clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz,cluster,analysis,dev]'
	touch $@

demo: install
	$(BIN)/python -m guestemu.demo

test: install
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not soak"

soak: install
	$(BIN)/python -m pytest -m soak

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# Rebuilds the committed machine code from assembly and C (needs binutils and a C compiler).
snippets: install
	$(BIN)/python -m guestemu.machine.assemble
	$(BIN)/python -m guestemu.campaign.build
	$(BIN)/python -m guestemu.ledger.code
	$(BIN)/python -m guestemu.zoo.variants

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
