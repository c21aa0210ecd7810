"""The dashboard: a live page of a run that is being written, which changes nothing in it."""
