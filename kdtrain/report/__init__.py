"""Tables, pictures and figures that say what a run found, and how sure one may be of it."""
