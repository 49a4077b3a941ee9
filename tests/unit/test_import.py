"""What `import fct_infer` costs and brings along, each time in a fresh interpreter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fct_infer import transformation

HEAVY = ("torch", "onnx", "onnxruntime", "faiss", "click", "rich", "matplotlib", "PIL")

# Processor time: what the import takes on an idle machine, also when this one is not.
MEASURE = """
import json, sys, time
start = time.process_time()
{statements}
seconds = time.process_time() - start
print(json.dumps({{"seconds": seconds, "modules": sorted(sys.modules)}}))
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def measure(statements: str) -> dict[str, Any]:
    result = run_python(MEASURE.format(statements=statements))
    assert result.returncode == 0, result.stderr
    measured: dict[str, Any] = json.loads(result.stdout)
    return measured


@pytest.mark.parametrize(
    "statements",
    ["import fct_infer", "import fct_infer; fct_infer.Transformation", "import fct_infer; from fct_infer import _core"],
    ids=["package", "Transformation", "compiled core"],
)
def test_import_is_quick_and_light(statements: str) -> None:
    runs = [measure(statements) for _ in range(5)]
    loaded = {module.partition(".")[0] for module in runs[0]["modules"]}
    assert not loaded & set(HEAVY)
    assert min(run["seconds"] for run in runs) < 1.5


def test_every_public_name_resolves_in_a_fresh_interpreter() -> None:
    result = run_python("import fct_infer; print([getattr(fct_infer, name) for name in fct_infer.__all__])")
    assert result.returncode == 0, result.stderr


def test_unknown_names_are_attribute_errors() -> None:
    result = run_python("import fct_infer; fct_infer.transfrom")
    assert "AttributeError: module 'fct_infer' has no attribute 'transfrom'" in result.stderr


def test_a_source_tree_without_its_core_says_what_is_missing(tmp_path: Path) -> None:
    shutil.copytree(
        Path(transformation.__file__).parent, tmp_path / "fct_infer", ignore=shutil.ignore_patterns("*.so*")
    )
    packages = Path(np.__file__).parents[1]
    # -S: without the .pth files and hooks through which an installed fct_infer would be found.
    result = subprocess.run(
        [
            *(sys.executable, "-S", "-c"),
            f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(packages)!r}]\n"
            "import fct_infer; print(fct_infer.__file__); fct_infer.Transformation(None)",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.startswith(str(tmp_path))
    error = result.stderr.splitlines()[-1]
    assert error.startswith("ImportError: ")
    assert "_core" in error
