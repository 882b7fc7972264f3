"""The search of ``kdtrain tune``: its space, its rungs, its trials."""
