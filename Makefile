# Two commands: `make demo` (a model and a sample, about 5 minutes on a laptop) and `make test`. Everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/ready
	$(BIN)/python prepare.py
	$(BIN)/python train.py config/demo.py --dataset=stdlib --overwrite
	$(BIN)/python sample.py --model=out/demo --prompt="def " --max_new_bytes=800

test: .venv/ready-dev
	$(BIN)/python -m pytest

.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stlm needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(BIN)/pip install -q -r requirements-dev.txt
	touch $@

clean:  # what was installed and made: not data/ and not out/
	rm -rf .venv .pytest_cache .hypothesis .ruff_cache
