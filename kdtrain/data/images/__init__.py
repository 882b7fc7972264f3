"""Image files: opened within limits, resized, and brought to the form of a network's input."""
