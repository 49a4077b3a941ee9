"""PyTorch: TorchScript and torch.export archives. They are code; whoever opens one has been told so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fct_infer.artifacts.foreign_code import foreign_code
from fct_infer.artifacts.manifest import is_image
from fct_infer.artifacts.torch_files import TorchModel
from fct_infer.backends.device import cuda_index
from fct_infer.backends.runner import Batch, DeviceBatch, Interface, Runner
from fct_infer.device_arrays import LEGACY_STREAM, DeviceRows
from fct_infer.errors import ArtifactError, UnsupportedError
from fct_infer.transformation import Float32Array

_TRIED_ROWS = 2


class TorchRunner(Runner):
    """A torch module with named inputs.

    Args:
        model: what :func:`fct_infer.artifacts.torch_files.load_torch` returns.
        inputs: shape of each input, without the batch axis, as the module takes it: a row (d,) or (d, 1, 1), an image
            (c, h, w).
        device: ``auto`` is the first CUDA device if PyTorch can use one, else the CPU.
        threads: CPU threads, set for the whole process; None leaves it as it is.

    Raises:
        ArtifactError: the module does not run on such inputs or does not make one embedding of each row.
        UnsupportedError: the device cannot be had here.
    """

    backend = "torch"

    def __init__(
        self,
        model: TorchModel,
        inputs: Mapping[str, tuple[int, ...]],
        *,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        import torch

        has_cuda = torch.cuda.is_available()
        index = (0 if has_cuda else None) if device == "auto" else cuda_index(device)
        if index is not None and index >= torch.cuda.device_count():
            raise UnsupportedError(
                f"device {device}: PyTorch {torch.__version__} finds {torch.cuda.device_count()} devices"
            )
        if threads is not None:
            torch.set_num_threads(min(threads, os.cpu_count() or 1))
        self.device = "cpu" if index is None else f"cuda:{index}"
        self.runtime = f"torch {torch.__version__} {self.device}"
        self._torch, self._module, self._inputs = torch, model.module.to(self.device), dict(inputs)
        outer = {name: shape if is_image(shape) else shape[:1] for name, shape in inputs.items()}
        self.interface = Interface(outer, self._probe(model))

    def run(self, batch: Batch) -> Float32Array:
        """Compute one batch; see :meth:`Runner.run`."""
        rows = len(next(iter(batch.values())))
        with foreign_code(f"{self.runtime}: does not run on a batch of {rows} rows"):
            output = self._forward([batch[name].reshape(-1, *shape) for name, shape in self._inputs.items()])
            found = output.flatten(1).float().cpu().numpy()
        return np.array(found, order="C")  # a copy: it may be a view of the input

    def run_on_device(self, batch: DeviceBatch, out: DeviceRows, stream: int) -> None:
        """Compute one batch on the device, on the caller's stream; see :meth:`Runner.run_on_device`."""
        torch, device_number = self._torch, self.device_number
        problem = f"{self.runtime}: does not run on a batch of {out.rows} rows"
        with foreign_code(problem), _on_stream(torch, stream, device_number), torch.inference_mode():
            tensors = [_tensor_at(torch, batch[name], (out.rows, *shape)) for name, shape in self._inputs.items()]
            output = self._module(*tensors).flatten(1)
            result = _tensor_at(torch, out, (out.rows, self.interface.output_dim))
            if output.shape != result.shape:  # which a copy would repeat until it fits
                raise ArtifactError(f"{problem}: made {tuple(output.shape)}, wanted {tuple(result.shape)}")
            result.copy_(output)

    def _forward(self, arrays: list[Float32Array]) -> Any:
        torch = self._torch
        with torch.inference_mode():
            return self._module(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def _probe(self, model: TorchModel) -> int:
        shapes = " and ".join("x".join(map(str, shape)) for shape in self._inputs.values())
        with foreign_code(f"{model.name}: does not run on inputs of shape {shapes}"):
            output = self._forward([np.zeros((_TRIED_ROWS, *shape), np.float32) for shape in self._inputs.values()])
        if not isinstance(output, self._torch.Tensor):
            raise ArtifactError(f"{model.name}: makes a {type(output).__name__}, wanted one tensor")
        found = tuple(output.shape)
        is_embedding = len(found) == 2 or (len(found) == 4 and found[2:] == (1, 1))
        if found[:1] != (_TRIED_ROWS,) or not is_embedding or found[1] < 1:
            raise ArtifactError(f"{model.name}: makes {found} of {_TRIED_ROWS} rows, wanted (n, d) or (n, d, 1, 1)")
        if not output.is_floating_point():  # a cast would drop what a complex number has beside its real part
            raise ArtifactError(f"{model.name}: makes {output.dtype}, wanted floating-point numbers")
        return int(found[1])


def _on_stream(torch: Any, stream: int, device_number: int) -> AbstractContextManager[None]:
    """Make a stream the current one; what the default stream is called elsewhere, 1, is no stream to PyTorch."""
    if stream == LEGACY_STREAM:
        return torch.cuda.stream(torch.cuda.default_stream(device_number))  # type: ignore[no-any-return]
    return torch.cuda.stream(torch.cuda.ExternalStream(stream, device=device_number))  # type: ignore[no-any-return]


class _CudaArray:
    """Rows under the protocol that PyTorch reads without a copy."""

    def __init__(self, rows: DeviceRows, shape: tuple[int, ...]) -> None:
        self.owner = rows.owner
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (rows.address, False),
            "strides": None,
            "version": 3,
        }


def _tensor_at(torch: Any, rows: DeviceRows, shape: tuple[int, ...]) -> Any:
    return torch.as_tensor(_CudaArray(rows, shape), device="cuda")
