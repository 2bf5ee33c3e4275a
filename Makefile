# Everything happens in .venv at the project's root, made from nothing by the targets themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The pinned set that CI runs; without it pip takes the newest releases that pyproject.toml allows.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.core
	$(BIN)/differad locate examples/board_good.png examples/board_defect.png --save demo/overlay.png
	$(BIN)/differad evaluate examples/pairs.jsonl --out demo/evaluation
	@echo "overlay: demo/overlay.png   report: demo/evaluation/report.html"

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Built anew when what is installed changes; a half-made environment has no stamp, so it is started over.
$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) --editable '.[local,openai,data,ray,train,test]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist
