"""Model files: manifest, digests, loaders. The only room that opens model files of any kind."""
