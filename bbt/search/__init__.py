"""The loop of a search."""
