"""The teachers of a fit: which ones, their files, a first look at them, and the match of classes."""
