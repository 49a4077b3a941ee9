#!/usr/bin/env bash
# Runs a command on the simulated device: tests/simulated_cuda/run.sh BUILD_FOLDER python -m pytest tests/cuda
set -euo pipefail
here=$(dirname "$(realpath "$0")")
package=$(realpath "$1")/tests/simulated_cuda/package
shift
export LD_LIBRARY_PATH=$package/lib PYTHONPATH=$package:$here/python:$here/..
export PYTHONSAFEPATH=1  # else the repository's own fct_infer, which has no core, would come first
export FCT_REQUIRE_CUDA=1 FCT_SIMULATED_FREE=${FCT_SIMULATED_FREE:-39845888}
if [[ $(ldd "$package/lib/libcuda.so.1") == *libasan* ]]; then
  LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
  export LD_PRELOAD ASAN_OPTIONS=detect_leaks=0
fi
exec "$@"
