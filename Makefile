# SPDX-License-Identifier: GPL-2.0-or-later
# `make demo` runs the main job, `make test` the tests; each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs
CONSTRAINTS := constraints.txt
# The build's own packages are installed apart from ours; older pips read the first name for them,
# newer ones the second.
PIP_INSTALL := PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS) \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	-e '.[fuzz,cluster,analysis,dev]'

.PHONY: install update native demo test soak sanitize kernels lint docs types snippets clean

install: $(STAMP)

# The C that runs in the user's process is compiled by the installation (hatch_build.py). Where
# neither a compiler is nor one can be downloaded, Python does its work.
NATIVE := $(wildcard guestemu/*/native/*.[ch] guestemu/campaign/*/*.[ch]) \
	guestemu/native/build.py

$(STAMP): pyproject.toml $(CONSTRAINTS) hatch_build.py $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) || GUESTEMU_NATIVE=off $(PIP_INSTALL)
	touch $@

# Renews the versions that `make install` takes.
update: install
	$(BIN)/python .ci/constraints.py

# Compiles it again in place, in seconds.
native: install
	$(BIN)/python -m guestemu.native

demo: install
	$(BIN)/guestemu demo

test: install
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not soak"

soak: install $(DOCS_STAMP)
	$(BIN)/python -m pytest -m soak

# Debian's kernels that the tests need: 6.1, 6.12 and the newest series.
kernels: install
	$(BIN)/python -m guestemu kernel fetch

# The native tests, and hostile records, on libraries built with ASan and UBSan.
sanitize: install
	$(BIN)/python tests/native/sanitize.py

# What the tests expect of the newest series, when it has moved on: look at the difference.
newest: install
	$(BIN)/python -m tests.linux.newest

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

# Links between documents lead somewhere, and their commands exist; then the site, build/site.
docs: install $(DOCS_STAMP)
	$(BIN)/python -m pytest -q tests/docs/test_docs_links.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python docs/site/build.py

$(DOCS_STAMP): $(STAMP)
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check 'mkdocs-material>=9.6'
	touch $@

types: install
	$(BIN)/python -m mypy

# Rebuilds the committed code of guests from assembly (needs binutils).
snippets: install
	$(BIN)/python -m guestemu.machine.assemble
	$(BIN)/python -m guestemu.study.ledger.code
	$(BIN)/python -m guestemu.campaign.planted.variants

clean:
	rm -rf guestemu/native/*.so guestemu/native/*.guest $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
