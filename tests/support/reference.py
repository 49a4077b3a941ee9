"""The oracle that numeric tests compare with; itself checked against torch in tests/unit/artifacts/test_reference.py."""

from fct_infer.reference import apply_float64 as run_program_float64

__all__ = ["run_program_float64"]
