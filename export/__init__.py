"""Export trained models to the files production runs (extra `export`), one file per target."""

from .exporting import export_backbone, export_transformation
from .options import ExportReport, Options
from .user_files import export_file

__all__ = ["ExportReport", "Options", "export_backbone", "export_file", "export_transformation"]
