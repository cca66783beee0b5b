# Everything runs in .venv; cmake and ninja come from PyPI. A C++ compiler, make, git and Python >= 3.11 are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

# The bindings alone: the library is the patched engine.
export CMAKE_ARGS := -DLLAMA_BUILD=OFF

.DEFAULT_GOAL := help
.PHONY: help demo evaluation test test-slow phone-check phone-tests lint dev engine docs upstream-tests sanitize robustness clean

help:
	@echo "make demo            convert, quantize, chat and measure the default model"
	@echo "make engine          build the engine (about 10 minutes on 2 cores, once)"
	@echo "make evaluation      the default model beside its base: perplexity, questions, retrieval (hours; goes on)"
	@echo "make test            all tests"
	@echo "make test-slow       tests that take minutes each"
	@echo "make phone-check     one device program in qemu, phones in namespaces (adb, ssh)"
	@echo "make phone-tests     all device programs, all operators, more interruptions"
	@echo "make lint            ruff, mypy and the import contract"
	@echo "make dev             environment with every tool, and pre-commit"
	@echo "make upstream-tests  llama.cpp's own tests on the patched tree"
	@echo "make sanitize        the operators and the architecture under ASan and UBSan"
	@echo "make robustness      20,000 hostile GGUFs, state files, failing calls, edited prompts (a night)"
	@echo "make docs            regenerate docs/cli.md, docs/api.md, docs/results and the chart"

$(VENV)/.core: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (first time: a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "installing the tests' requirements"
	$(PIP) install -c constraints.txt -e ".[distill,test]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) install -c constraints.txt -e ".[distill,test,dev]"
	@touch $@

engine: $(VENV)/.core
	$(BIN)/sb-edge engine build

demo: engine
	$(BIN)/sb-edge demo

# Each step keeps its finished parts in out/evaluation: repeat the command to go on.
evaluation: $(VENV)/.test engine
	mkdir -p out/evaluation
	$(BIN)/sb-edge eval default --base default-base --questions built-in --passkey 256,1k,3k --trials 30 \
		--recall 0 --recall-tasks dictionary-10,facts --cases 200 --spike-k 0,3 --parts out/evaluation/parts.json \
		--markdown out/evaluation/quality.md --json out/evaluation/quality.json
	$(BIN)/sb-edge spikes stats default --text sb_edge/evaluate/data/prose.txt --tokens 2048 \
		--json out/evaluation/spikes.json
	[ -e out/evaluation/student ] || $(BIN)/sb-edge transplant default-base --trained distill/data/trained.gguf \
		--dtype f32 -o out/evaluation/student
	$(BIN)/python examples/beyond_window.py default-base out/evaluation/student --window 256 \
		--parts out/evaluation/beyond.json --markdown out/evaluation/beyond.md
	$(BIN)/python examples/transcript.py > out/evaluation/transcript.md

test: $(VENV)/.test engine
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.test engine
	$(BIN)/python -m pytest -m "slow and not phone" --timeout 3600

$(VENV)/.phone: $(VENV)/.test
	$(PIP) install -c constraints.txt -e ".[distill,test,phone]" adbutils asyncssh
	@touch $@

phone-check: $(VENV)/.phone engine
	$(BIN)/sb-edge engine build --target arm64
	$(BIN)/python -m pytest tests/device -m "not slow"

phone-tests: $(VENV)/.phone engine
	$(BIN)/sb-edge engine build --target arm64
	$(BIN)/python -m pytest tests/device -m "" --timeout 3600

dev: $(VENV)/.dev
	$(BIN)/pre-commit install

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/typecheck.py
	cd build/types && $(CURDIR)/$(BIN)/lint-imports --no-cache --no-logo $(CURDIR)/pyproject.toml

docs: $(VENV)/.core
	$(BIN)/python -m sb_edge.cli.reference docs/cli.md
	$(BIN)/python -m sb_edge.cli.reference --api docs/api.md
	$(BIN)/python -m sb_edge.bench.report.results_docs docs/results docs/pictures/decode.png bench/results/*.jsonl

upstream-tests: engine
	$(BIN)/python -m sb_edge.engine.upstream_tests

sanitize: $(VENV)/.core
	$(BIN)/sb-edge engine build --debug
	SB_EDGE_ENGINE_VARIANT=debug $(BIN)/python -m sb_edge.engine.upstream_tests

robustness: $(VENV)/.test engine
	$(BIN)/python tests/robustness

clean:
	rm -rf build out $(VENV)
