# Two targets do all set-up on a fresh Debian 12 machine, as root: `make demo` and `make test`.

PYTHON ?= python3
ENGINE ?= ovs
VENV := .venv
BIN := $(VENV)/bin
PROJECTS := core engines/linux engines/ovs engines/vpp shim docs/example-engine
DEMO_linux := demo/linux.py
DEMO_ovs := demo/ovs_dpdk.py
DEMO_vpp := demo/vpp.py

.PHONY: demo test lint unit docs bench format clean

# ENGINE=ovs: DPDK applications on Open vSwitch; ENGINE=linux: containers on a Linux bridge;
# ENGINE=vpp: VPP in the containers too, where a VPP is installed (VPP_PREFIX).
demo: $(VENV)/.ready .build/demo-$(ENGINE).ready
	$(BIN)/python $(DEMO_$(ENGINE))

test: lint unit docs

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# TESTS=tests/linux runs a part.
unit: $(VENV)/.ready .build/demo-linux.ready .build/demo-ovs.ready .build/test.ready
	$(BIN)/pytest $(TESTS)

docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir .build/site

# Medians and ratios beside the reference plugins: make bench ROUNDS=50 JSON=figures.json
bench: $(VENV)/.ready .build/demo-linux.ready .build/demo-ovs.ready
	$(BIN)/python bench/linux.py $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(JSON),--json $(JSON))
	$(BIN)/python bench/ovs_dpdk.py $(if $(ROUNDS),--rounds $(ROUNDS))
	$(BIN)/python bench/vpp.py $(if $(ROUNDS),--rounds $(ROUNDS))

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .build

# -- set-up: each step leaves a mark, so that the next run has nothing to do

$(VENV)/.ready: constraints.txt setup/python.txt $(PROJECTS:%=%/pyproject.toml) shim/shim.c shim/hatch_build.py
	setup/debian.sh setup/packages.txt
	@echo "Installing Python packages into $(VENV): setup/python.txt, $(PROJECTS)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement setup/python.txt $(PROJECTS:%=--editable %)
	touch $@

.build/demo-linux.ready: demo/packages.txt
.build/demo-ovs.ready: tests/lab/packages-ovs.txt
.build/demo-vpp.ready: demo/packages.txt
.build/test.ready: tests/lab/packages.txt
.build/%.ready:
	setup/debian.sh $<
	mkdir -p .build
	touch $@
