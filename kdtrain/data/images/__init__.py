"""Single images and folders of them: opened within limits, resized, and made into a network's input."""
