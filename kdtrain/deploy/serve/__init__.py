"""The HTTP service of exported models: a page to draw on, and an endpoint. It needs no oneflow."""
