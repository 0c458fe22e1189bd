# Two targets do all set-up on a fresh Debian 12 machine, as root: `make demo` and `make test`.

PYTHON ?= python3
ENGINE ?= ovs
VENV := .venv
BIN := $(VENV)/bin
# The tests of a file run in one worker, because they share a switch. tests/conftest.py sorts slow
# files first. Three workers keep two processors busy, because much of a test is waiting.
WORKERS ?= 3
COVERAGE := --cov --cov-report=term-missing:skip-covered --cov-report=html
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PROJECTS := core engines/linux engines/ovs engines/vpp shim docs/example-engine
DEMO_linux := demo/linux.py
DEMO_ovs := demo/ovs_dpdk.py
DEMO_vpp := demo/vpp.py
ABOUT_linux := two containers on a Linux bridge ping one another.
ABOUT_ovs := two DPDK applications on a private Open vSwitch exchange packets.
ABOUT_vpp := two containers with a VPP each, on a private VPP, ping one another.
# Unlike --constraint, PIP_CONSTRAINT also applies to build dependencies.
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-all coverage fresh lint unit docs bench format changelog clean

help:
	@echo "make demo               two DPDK applications on Open vSwitch exchange packets"
	@echo "make demo ENGINE=linux  two containers on a Linux bridge ping one another"
	@echo "make demo ENGINE=vpp    the same with VPP, where one is installed (VPP_PREFIX)"
	@echo "make test               all checks and tests; TESTS=tests/linux runs a part, WORKERS=2"
	@echo "                        lets four processes share them (2 otherwise)"
	@echo "make test-all           the same, each request in every way to serve it, with coverage"
	@echo "make lint, unit, docs   parts of make test"
	@echo "make coverage           the tests of make test, and what of core they do not execute"
	@echo "make fresh              the commands above on a bare Debian 12, as a newcomer has it"
	@echo "make bench              figures beside the reference plugins; ROUNDS=50 JSON=figures.json"
	@echo "make format             format the source"
	@echo "make changelog VERSION=1.2.3"
	@echo "                        show what CHANGELOG.md gets; WRITE=1 writes it, and removes the"
	@echo "                        fragments in changelog.d"
	@echo "make clean              remove what these have made; Debian packages stay"

demo: $(VENV)/.demo-$(ENGINE).ready
	$(BIN)/python $(DEMO_$(ENGINE))

test: lint unit docs

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.ready
	$(PYTEST) $(TESTS)

test-all: lint docs
	$(PYTEST) --all-ways $(COVERAGE) $(TESTS)

coverage: $(VENV)/.ready
	$(PYTEST) $(COVERAGE) $(TESTS)

docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir .build/site

fresh:
	setup/debian.sh tests/fresh/packages.txt
	tests/fresh/run

bench: $(VENV)/.ready
	$(BIN)/python bench/linux.py $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(JSON),--json $(JSON))
	$(BIN)/python bench/ovs_dpdk.py $(if $(ROUNDS),--rounds $(ROUNDS))
	$(BIN)/python bench/vpp.py $(if $(ROUNDS),--rounds $(ROUNDS))

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

changelog: $(VENV)/.ready
	@[ -n "$(VERSION)" ] || { echo "which version? make changelog VERSION=1.2.3" >&2; exit 2; }
	$(BIN)/towncrier build --version $(VERSION) $(if $(WRITE),--yes,--draft)

clean:
	rm -rf $(VENV) .build .hypothesis .*_cache shim/src/userspace_cni_shim/userspace
	find . -name __pycache__ -prune -exec rm -rf {} +

# -- set-up: each step leaves a mark, so that the next run has nothing to do

# A demo needs the core, one engine and that engine's switch.
$(VENV)/.demo-%.ready: setup/packages.txt demo/packages-%.txt constraints.txt core/pyproject.toml engines/%/pyproject.toml
	@echo "After the set-up of some minutes, $(ABOUT_$*)"
	setup/debian.sh setup/packages.txt demo/packages-$*.txt
	@echo "Installing Python packages into $(VENV): core, engines/$*"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable core --editable engines/$*
	touch $@

# The VPP demo uses the test lab.
$(VENV)/.demo-vpp.ready: $(VENV)/.ready
	touch $@

$(VENV)/.ready: $(wildcard setup/*.txt demo/*.txt) constraints.txt $(PROJECTS:%=%/pyproject.toml) shim/shim.c shim/hatch_build.py
	setup/debian.sh setup/packages.txt setup/packages-test.txt demo/packages-linux.txt demo/packages-ovs.txt
	@echo "Installing Python packages into $(VENV): setup/python-test.txt, $(PROJECTS)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --requirement setup/python-test.txt $(PROJECTS:%=--editable %)
	touch $@
