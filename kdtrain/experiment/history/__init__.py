"""What runs have left on disk: their list, and the model card of one."""
