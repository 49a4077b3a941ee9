"""Where and how precisely a model is trained: CPU or GPUs, one or several, through Lightning Fabric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from fct_infer.errors import UnsupportedError, import_error

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TrainingPrecision: TypeAlias = Literal["fp32", "bf16-mixed", "16-mixed"]


def launch(accelerator: str, devices: int, precision: TrainingPrecision) -> Fabric:
    """Return the devices, ready for use.

    With several devices, every process but the first is started here by running the same command line again.

    Raises:
        UnsupportedError: this machine has no such accelerator, or fewer devices.
        MissingExtraError: Lightning Fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.utilities.exceptions import MisconfigurationException
    except ImportError as error:
        raise import_error("lightning-fabric", "train", error) from error
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=devices, precision="32-true" if precision == "fp32" else precision
        )
        fabric.launch()
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UnsupportedError(f"training on {devices} x {accelerator!r} in {precision}: {error}") from error
    return fabric
