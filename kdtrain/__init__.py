"""kdtrain: a plugin-style trainer for knowledge distillation on OneFlow."""

__version__ = "0.1.0"
