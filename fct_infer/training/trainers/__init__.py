"""One file per thing trained; they share :func:`fct_infer.training.runs.loop.fit`."""
