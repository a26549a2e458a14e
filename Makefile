# make run · test · lint · docs · clean      recipe=FILE and plugin=NAME narrow them
PYTHON ?= python3
recipe ?= recipes/glyphs/5w1s-maml.yaml
plugin ?=

BIN := .venv/bin
CORE_BIN := .venvs/core/bin
PLUGINS := $(wildcard plugins/*/pyproject.toml)
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := -m pytest --quiet -n 2
TESTS := $(if $(plugin),plugins/$(plugin),tests plugins README.md docs)
# two test processes, one thread each: more threads than cores only wait for one another
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: run test test-core lint format docs clean

run: .venv/ready
	$(BIN)/fsl run $(recipe)

test: .venv/ready $(if $(plugin),,test-core)
	$(ONE_THREAD) $(BIN)/python $(PYTEST) $(TESTS)

# core by itself: nothing of plugins/ is installed in this environment
test-core: .venvs/core/ready
	$(ONE_THREAD) $(CORE_BIN)/python $(PYTEST) -m "not slow" tests

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf .venv .venvs site dist build .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready: pyproject.toml constraints.txt $(PLUGINS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) -e .[dev] $(patsubst %/pyproject.toml,-e %,$(PLUGINS))
	touch $@

.venvs/core/ready: pyproject.toml constraints.txt
	test -x $(CORE_BIN)/python || $(PYTHON) -m venv .venvs/core
	$(CORE_BIN)/python $(PIP_INSTALL) -e .[dev]
	touch $@
