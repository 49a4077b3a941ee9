"""Other runtimes behind the same call, each imported on use."""
