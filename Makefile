PYTHON ?= python3
# The versions to install, for example constraints/torch-2.6.txt; see that folder.
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin

.PHONY: demo test sanitize docs clean

demo: .venv/installed
	$(BIN)/lms-geometry demo --out demo --overwrite

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto

sanitize: .venv/installed
	$(BIN)/python tests/sanitize.py

docs: .venv/docs
	$(BIN)/python -m sphinx -W --keep-going -j auto -b html docs docs/_build/html

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[docs]'
	touch $@

.venv/installed: pyproject.toml setup.py $(CONSTRAINTS) $(wildcard lms_geometry/backends/_cpu*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build demo docs/_build docs/reference *.egg-info
