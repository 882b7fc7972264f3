"""The translation of a checkpoint's network into an ONNX file, which runs without oneflow."""
