# make run · test · test-next · lint · bench · results · docs · dist · clean
# recipe=FILE, plugin=NAME and only=SECTION narrow them
PYTHON ?= python3
NEXT_PYTHON ?= python3.13
recipe ?= recipes/glyphs/5w1s-maml.yaml
plugin ?=
only ?=
options ?=

BIN := .venv/bin
CORE_BIN := .venvs/core/bin
NEXT_BIN := .venvs/next/bin
BENCH_BIN := .venvs/bench/bin
PLUGINS := $(wildcard plugins/*/pyproject.toml)
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := -m pytest --quiet -n 2 --dist worksteal
# what plugins may change is tested with them: commands, sweeps, races, recipes, packages. All other
# tests of core see the same with plugins and without, and run once, where core is alone
NEED_PLUGINS := $(addprefix tests/,benchmarks cli sweeping) $(patsubst %,tests/test_%.py,\
    annotations defaults first_page newcomer new_plugin readers_pages recipes site \
    stranger wheels)
SHARED := tests/__init__.py tests/__pycache__ tests/conftest.py tests/parts
CORE_ALONE := $(filter-out $(NEED_PLUGINS) $(SHARED),$(wildcard tests/*))
WITH_PLUGINS := $(NEED_PLUGINS) tests/engine/test_installed_adapters.py plugins README.md docs
TESTS := $(if $(plugin),plugins/$(plugin),$(WITH_PLUGINS))
# two test processes, one thread each: more threads than cores only wait for one another. Hundreds
# of processes start, each 0.2 to 0.6 s sooner if the one before has kept what it compiled of us
FAST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

.PHONY: run test test-core test-next lint format bench results docs dist clean

run: .venv/ready
	$(BIN)/fsl run $(recipe)

test: .venv/ready $(if $(plugin),,test-core)
	$(FAST) $(BIN)/python $(PYTEST) $(TESTS)

# core by itself: nothing of plugins/ is installed in this environment
test-core: .venvs/core/ready
	$(FAST) $(CORE_BIN)/python $(PYTEST) $(CORE_ALONE)

# the same under a later Python, if there is one: make test-next NEXT_PYTHON=python3.13
test-next: .venvs/next/ready
	$(FAST) $(NEXT_BIN)/python $(PYTEST) $(CORE_ALONE)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fsl_core benchmarks release $(wildcard plugins/*/src/*)

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# races against the peers, in an environment of its own; make bench only=omniglot options=--quick
bench: .venvs/bench/ready
	$(BENCH_BIN)/python -m benchmarks $(if $(only),--only $(only)) $(options)

# the tables of README.md and docs/results/ from the runs that `fsl keep` wrote
results: .venv/ready
	$(BIN)/python -m benchmarks.results

# pages made from code and runs, then the site in site/, then its links
docs: .venv/ready
	$(BIN)/python docs/pages.py
	$(BIN)/zensical build --clean --strict
	$(BIN)/python docs/links.py site

# source archives and wheels of core and every plugin, with their metadata checked
dist: .venv/ready
	$(BIN)/python -m release build dist

clean:
	rm -rf .venv .venvs site docs/made dist build .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# learn2learn is built from C: where it cannot be, the tests that need it are skipped
.venv/ready: pyproject.toml constraints.txt $(PLUGINS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) -e .[dev] $(patsubst %/pyproject.toml,-e %[testing],$(PLUGINS))
	$(BIN)/python -m fsl_learn2learn.install -c constraints.txt || echo "the tests of learn2learn will be skipped"
	touch $@

.venvs/core/ready: pyproject.toml constraints.txt
	test -x $(CORE_BIN)/python || $(PYTHON) -m venv .venvs/core
	$(CORE_BIN)/python $(PIP_INSTALL) -e .[dev]
	touch $@

.venvs/next/ready: pyproject.toml constraints.txt
	test -x $(NEXT_BIN)/python || $(NEXT_PYTHON) -m venv .venvs/next
	$(NEXT_BIN)/python $(PIP_INSTALL) -e .[dev]
	touch $@

# a peer that could not be installed is left out, saying so, and tried again the next time
.venvs/bench/ready: pyproject.toml constraints.txt $(PLUGINS) benchmarks/requirements.txt benchmarks/install.py
	test -x $(BENCH_BIN)/python || $(PYTHON) -m venv .venvs/bench
	$(BENCH_BIN)/python benchmarks/install.py && touch $@ || test -f .venvs/bench/peers.json
