"""Plugins that come with kdtrain: callbacks, one file each, that import its public names only."""
