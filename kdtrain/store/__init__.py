"""Files on disk: atomic writes, checkpoints, run directories."""
