"""One training run: its loop, its folder, its devices, what it reports."""
