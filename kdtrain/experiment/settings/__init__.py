"""The settings of a fit: their schema, what follows from them, and where their values come from."""
