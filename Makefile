# Everything happens in .venv at the project's root, made from nothing by the targets themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The pinned set that CI runs; without it pip takes the newest releases that pyproject.toml allows.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

# The two ends of what pyproject.toml allows, each in an environment of its own, by uv, which can take the lowest releases. On Linux,
# UV_TORCH_BACKEND=cpu saves some 4 GB of CUDA libraries where PyTorch's own index can be reached.
NEWEST_PYTHON ?= $(firstword $(foreach one,python3.14 python3.13 $(PYTHON),$(if $(shell { $(one) -c pass && echo yes; } 2>/dev/null),$(one))))
EXTRAS := local,openai,data,ray,train,test
EDGE_TESTS = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest --durations 5 $(BORDER) $(2)

# What touches a library at its border. The rest of the suite tests what lies within.
BORDER := tests/test_packaging.py
BORDER += tests/test_images.py tests/data/test_masks.py       # OpenCV, Pillow, tifffile, imagecodecs, numpy: files
BORDER += tests/data/test_shapes.py tests/data/sources/test_coco_labels.py  # pycocotools, pydantic: labels
BORDER += tests/data/test_shards.py tests/data/test_recipe.py # pyarrow, PyYAML
BORDER += tests/cli/test_cli.py tests/cli/test_exchange.py    # typer; every embedded locator: OpenCV, threadpoolctl, portalocker
BORDER += tests/test_progress.py tests/cli/test_table.py      # rich
BORDER += tests/evaluation/test_report.py                     # jinja2
BORDER += tests/synthesis/test_run_of_synthesis.py::test_ray_leaves_the_same_bytes  # ray
BORDER += tests/training/test_data.py                         # datasets
BORDER += tests/training/test_runs.py::test_a_cold_start_writes_what_it_should         # TRL, accelerate, safetensors, tensorboard
BORDER += tests/training/test_runs.py::test_adapters_are_merged_into_what_is_exported  # PEFT
BORDER += tests/training/test_runs.py::test_every_family_takes_a_step_and_answers_alike_from_memory_and_disk
BORDER += tests/training/test_rl.py::test_log_probabilities_belong_to_the_final_tokens  # TRL's rollout
BORDER += tests/training/test_rl.py::test_two_processes_agree_with_one                 # torch.distributed
BORDER += tests/training/test_sharing.py::test_rollouts_losses_and_gradients_equal_trls   # torch, transformers and TRL from within
# Last: test_server.py imports its conftest by name, and the last that pytest loads is the one it finds.
BORDER += tests/locators/test_server.py::test_requests_overlap_and_come_back_in_order    # openai
BORDER += tests/locators/test_local.py::test_boxes_are_pixels_of_the_original_target  # transformers: processors, generation
BORDER += tests/locators/test_local.py::test_a_cached_prefix_changes_no_answer         # … its caches

# With the newest set alone. torchvision stands in it, which the other two go without: the processors of Mistral 3 and LFM2-VL need it,
# and transformers then has other defaults. In 5.18 transformers' own server (fastapi, uvicorn) wanted it.
NEWEST_TESTS := tests/training/test_families.py::test_it_locates tests/locators/test_server.py::test_transformers_serve_answers_in_pixels_of_the_target

.PHONY: demo test test-lowest test-newest lint clean

demo: $(VENV)/.core
	$(BIN)/differad locate examples/board_good.png examples/board_defect.png --save demo/overlay.png
	$(BIN)/differad evaluate examples/pairs.jsonl --out demo/evaluation
	@echo "overlay: demo/overlay.png   report: demo/evaluation/report.html"

# Whole files go to as many processes as there are cores, four at most: each may hold a gigabyte of PyTorch.
test: $(VENV)/.test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

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
	$(PIP) --editable '.[$(EXTRAS)]'
	touch $@

# The lowest releases that pyproject.toml names; what those need in turn is the newest that fits.
test-lowest: .venv-lowest/.test
	$(call EDGE_TESTS,.venv-lowest)

# The newest releases of the day, so it is installed anew each time. Where it fails, the last lines name what differs from CI's set.
test-newest:
	$(NEWEST_PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --disable-pip-version-check --quiet uv
	.venv-newest/bin/uv pip install --python .venv-newest --editable '.[$(EXTRAS)]' torchvision
	.venv-newest/bin/python scripts/versions.py
	@$(call EDGE_TESTS,.venv-newest,$(NEWEST_TESTS)) || { .venv-newest/bin/python scripts/versions.py --against constraints.txt; exit 1; }

.venv-lowest/.test: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --disable-pip-version-check --quiet uv
	.venv-lowest/bin/uv pip install --python .venv-lowest --resolution lowest-direct --editable '.[$(EXTRAS)]'
	.venv-lowest/bin/python scripts/versions.py
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest demo build dist
