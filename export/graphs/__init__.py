"""A model as an ONNX graph: from a program, a module or a foreign file; and the passes that change its precision."""
