"""From a checkpoint to an ONNX file, which runs without oneflow."""
