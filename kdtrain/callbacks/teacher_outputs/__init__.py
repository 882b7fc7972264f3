"""The outputs of a teacher, logits and layers, computed once for each variant of each training image."""
