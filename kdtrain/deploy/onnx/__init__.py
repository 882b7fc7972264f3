"""ONNX files: read, and computed by a process with limits."""
