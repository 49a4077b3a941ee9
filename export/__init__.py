"""Export trained models to the files production runs (extra `export`), one file per target."""
