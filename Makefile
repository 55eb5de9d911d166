# make demo                    a whole subnet on this machine, on the market model: 7 market days
# make demo EVENTS=PATH        the same on a recording of a real pool
# make test                    all tests on all cores; those on the real contracts need npm
# make test ARGS="-n 0 -x"     the same one after the other, until the first failure
# make bench                   speed and memory, with the machine's figures
# make lint
#
# Each sets itself up in .venv-VERSION. Another Python: make test PYTHON=python3.13

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv-$(VERSION)
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test bench lint

demo: $(VENV)/runtime
	NETUID= $(RUN) validator.py --fresh --dir local/demo $(if $(EVENTS),--events $(EVENTS),--round-seconds 3600) $(ARGS)
	$(RUN) validator.py report --db local/demo/validator.sqlite3 -o local/demo/report.html

test: $(VENV)/dev node_modules/.installed
	$(RUN) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

bench: $(VENV)/dev node_modules/.installed
	$(RUN) bench/sim.py
	$(RUN) bench/scoring.py
	$(RUN) bench/wire.py
	$(RUN) bench/hostile.py
	$(RUN) bench/memory.py
	$(RUN) bench/status.py
	$(RUN) bench/follower.py
	$(RUN) bench/sweep.py

lint: $(VENV)/dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(VENV)/runtime: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("Python %d.%d: 3.11 to 3.13 is needed; try make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/runtime
	$(PIP) -r requirements-dev.txt
	@touch $@

# the real contracts' bytecode; without npm the comparisons with it are left out, and say so
node_modules/.installed: package.json package-lock.json
	@mkdir -p node_modules
	@if command -v npm >/dev/null; then npm ci --ignore-scripts --silent --no-audit --no-fund && touch $@; else echo "npm is missing: no comparison with the real contracts"; fi
