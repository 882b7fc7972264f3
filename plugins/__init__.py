"""Callbacks that come with kdtrain but are not part of it: written against its public API only."""
