"""The export of networks to ONNX files."""
