"""Console scripts: parse, call, print; no logic."""
