# make demo    train two models, upgrade a gallery from one to the other, show what it was worth
# make test    everything CI checks: lint, types, import rule, C++ tests, Python tests
# make lint    the first three of those
# make bench   speed of the transformation and of a whole upgrade, side by side with what else one would use
# make reproduce  the papers' experiment in small, three seeds: writes docs/reproduction.md
# make clean   remove all that these made
#
# Each sets up .venv by itself and reuses it while nothing it depends on has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES := $(shell nproc)
CPP_SOURCES := $(shell find csrc tests/cpp -name '*.cpp' -o -name '*.h')
CORE := $(CPP_SOURCES) CMakeLists.txt pyproject.toml constraints.txt
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench reproduce clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	@$(BIN)/python demo/run.py

test: lint $(VENV)/.cpp-tests
	@echo "== C++ tests"
	@$(VENV)/cpp-tests/fct_core_tests
	@echo "== Python tests"
	@FCT_REQUIRE_TENSORRT=1 $(BIN)/python -m pytest -q -n $(CORES)

lint: $(VENV)/.dev
	@echo "== ruff, clang-format, mypy, import rule"
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	@$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo

bench: $(VENV)/.bench
	@$(BIN)/python -m benchmarks.bench_transformation
	@$(BIN)/python -m benchmarks.bench_upgrade
	@$(BIN)/python -m benchmarks.bench_memory

reproduce: $(VENV)/.demo
	@$(BIN)/python -m reproduction.run

clean:
	rm -rf $(VENV) build dist demo/work demo/report.html reproduction/work benchmarks/.work .mypy_cache .ruff_cache .pytest_cache .hypothesis

# --- set-up: one stamp per set of extras; the C++ core is rebuilt when its sources change ---

$(VENV)/.python:
	@echo "== set-up: virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python $(CORE)
	@echo "== set-up: building the C++ core, installing fct-infer[cpu,train,export] (a few minutes the first time)"
	@$(INSTALL) --editable '.[cpu,train,export]'
	@touch $@

# The requirements of one extra of pyproject.toml, so that adding it does not build the core again.
EXTRA = $(BIN)/python -c "import sys, tomllib; \
  print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies'][sys.argv[1]], sep='\n')"

$(VENV)/.dev: $(VENV)/.demo
	@echo "== set-up: installing the development tools"
	@$(EXTRA) dev >$(VENV)/dev.txt && $(INSTALL) --requirement $(VENV)/dev.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.demo
	@echo "== set-up: installing the opponents"
	@$(EXTRA) bench >$(VENV)/bench.txt && $(INSTALL) --requirement $(VENV)/bench.txt
	@touch $@

$(VENV)/.cpp-tests: $(VENV)/.dev $(CORE)
	@echo "== set-up: building the C++ tests"
	@$(INSTALL) 'cmake>=3.25' ninja 'onednn-devel-cpu-gomp==2023.2.0' 'onednn-cpu-gomp==2023.2.0'
	@$(BIN)/cmake -G Ninja -S . -B $(VENV)/cpp-tests -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DFCT_BUILD_TESTS=ON \
	  -DFCT_BUILD_PYTHON=OFF -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python >/dev/null
	@$(BIN)/cmake --build $(VENV)/cpp-tests
	@touch $@
