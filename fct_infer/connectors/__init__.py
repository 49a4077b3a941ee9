"""Galleries where they are: one file per format, each of which gives a :class:`~fct_infer.gallery.source.Source`."""

from fct_infer.connectors.options import SourceOptions
from fct_infer.connectors.registry import SINKS, open_destination, open_sink, open_source, opened_source

__all__ = ["SINKS", "SourceOptions", "open_destination", "open_sink", "open_source", "opened_source"]
