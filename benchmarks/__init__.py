"""One question per file; run from the root of the repository: ``python -m benchmarks.bench_transformation``."""
