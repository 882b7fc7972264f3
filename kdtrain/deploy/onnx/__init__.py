"""ONNX files: their reader, the process that computes them within limits, and networks made of them."""
