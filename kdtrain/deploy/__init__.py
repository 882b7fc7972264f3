"""Trained models in use: predictors, benchmark, export to ONNX, int8, limits for ONNX files, HTTP service.

Training does not belong here. Imports ``errors``, ``runtime``, ``metrics``, ``data``, ``models`` and
``store``; ``onnx`` (but for its ``network``) and ``serve`` do without oneflow.
"""
