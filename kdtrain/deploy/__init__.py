"""Models as ONNX files: export, int8, reading strangers' files within limits, benchmark, HTTP service.

Training does not belong here. Imports ``errors``, ``runtime``, ``metrics``, ``data``, ``models`` and
``store``; ``onnx_model`` and ``serve`` do without oneflow.
"""
