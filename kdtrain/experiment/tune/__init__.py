"""``kdtrain tune``: search spaces, successive halving, trials, and the search itself.

The configuration and the fits of a trial are those of the room around.
"""
