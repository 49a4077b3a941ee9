from __future__ import annotations

import errno

import pytest

from fct_infer.artifacts.foreign_code import foreign_code, said_by
from fct_infer.errors import ArtifactError, GateError, ResourceError


class UnspeakableError(RuntimeError):
    def __str__(self):
        raise TypeError


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no"), ArtifactError, "it fails: no"),
        (RuntimeError("too many\nrows"), ArtifactError, "it fails: too many rows"),
        (SystemExit(3), ArtifactError, "it fails: SystemExit 3"),
        (KeyError("k"), ArtifactError, "it fails: KeyError 'k'"),
        (OSError(), ArtifactError, "it fails: OSError"),
        (MemoryError(), ResourceError, "it fails: MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ResourceError, "it fails: Default.* memory"),
        (RuntimeError("CUDA error: an illegal access"), ResourceError, "it fails: CUDA error"),
        (RuntimeError("can't start new thread"), ResourceError, "it fails: can't start"),
        (OSError(errno.EIO, "Input/output error"), ResourceError, "it fails: .*Input/output error"),
        (RuntimeError("Expected all tensors on one device, cuda:0 and cpu"), ArtifactError, "it fails: Expected"),
        (RuntimeError("key 'allocated_tokens' not found"), ArtifactError, "it fails: key"),
        (UnspeakableError(), ArtifactError, "it fails: UnspeakableError"),
    ],
)
def test_what_it_raises_is_one_typed_line(error, kind, message):
    with pytest.raises(kind, match=f"^{message}") as found, foreign_code("it fails"):
        raise error
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GateError("a limit")])
def test_ctrl_c_and_typed_errors_pass(error):
    with pytest.raises(type(error)) as found, foreign_code("it fails"):
        raise error
    assert found.value is error


def test_of_a_long_message_the_last_line_is_said():
    assert said_by(ValueError("\n".join(["x" * 200, "y" * 200, "  the reason  "]))) == "the reason"
    assert said_by(RuntimeError("Traceback of TorchScript:\n  line 1\nthe reason\n")) == "the reason"


def test_of_the_exporter_to_onnx_the_reason_is_said_and_not_the_graph():
    graph = "  [Caused by the value 'input defined in (%1)\n)' (type 'Tensor')]\n    (type 'Tensor')"
    assert said_by(RuntimeError(f"Unsupported: operator threshold.{graph}")) == "Unsupported: operator threshold."
