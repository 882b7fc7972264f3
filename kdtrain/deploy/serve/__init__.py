"""The HTTP service of exported models."""
