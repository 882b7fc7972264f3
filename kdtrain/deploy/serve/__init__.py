"""The HTTP service of exported models: a page for drawing digits, and an endpoint. Needs no oneflow."""
