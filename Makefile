# Two commands on a fresh machine: `make demo` and `make test`. Both make their own environment in .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: env demo test lint format bench evidence docs soak fuzz coverage clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), f"Python 3.11 or 3.12 is needed, this is {sys.version}; name one: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,text,integrations]'
	# It holds numpy and transformers to old versions, so it stays outside: the tests of MDS alone look for it there.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --upgrade --target $(VENV)/mds mosaicml-streaming
	touch $@

demo: $(STAMP)
	$(BIN)/python data_manifests/demo.py --out runs/demo

test: $(STAMP)
	$(BIN)/python data_manifests/fetch.py
	# A process for each core, of one thread: two pools on the same cores wait for each other. In the order of the files,
	# since those of few tests, which xdist would take last, are the long ones.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/stages.py
	for question in facility_location_kernel facility_location_embeddings facility_location_sparse facility_location_scale ingenious_ranking objectives dbp_quotas certificate dynamic_plans semantic_dedup pipeline_scale vectors_scale estimates cluster_faiss embed_texts outside_encoder startup; do \
	  $(BIN)/python benchmarks/$$question.py || exit 1; done
	$(BIN)/python benchmarks/readme.py

# What selection, advice, dynamic pruning and selected language-model data gain: some hours, and it goes on after a stop.
evidence: $(STAMP)
	for question in selection variants advice pruning language; do \
	  $(BIN)/python benchmarks/evidence/$$question.py || exit 1; done
	$(BIN)/python benchmarks/readme.py

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo build/docs/index.html

coverage: $(STAMP)
	$(BIN)/python -m coverage run -m pytest tests/unit/test_manifest_*.py tests/unit/test_exports*.py tests/properties/test_canonical.py tests/faults/test_manifest_damage.py
	$(BIN)/python -m coverage report

fuzz: $(STAMP)
	$(BIN)/python tests/soak/fuzz.py --seconds 3600 --seed $$(date +%j)

soak: $(STAMP) fuzz
	$(BIN)/python -m pytest tests/integration/test_determinism.py tests/faults --soak

clean:
	rm -rf $(VENV) .cache build *.egg-info
