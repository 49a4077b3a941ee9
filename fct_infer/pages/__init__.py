"""HTML pages of what was found, with their charts: drawn here, filled by the rooms above."""

from fct_infer.pages.charts import bar_chart, curves_chart, heat_map, histogram, line_chart
from fct_infer.pages.page import (
    html_charts,
    html_figure,
    html_page,
    html_properties,
    html_section,
    html_summary,
    html_table,
    html_verdict,
)

__all__ = [
    "bar_chart",
    "curves_chart",
    "heat_map",
    "histogram",
    "html_charts",
    "html_figure",
    "html_page",
    "html_properties",
    "html_section",
    "html_summary",
    "html_table",
    "html_verdict",
    "line_chart",
]
