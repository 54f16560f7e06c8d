"""`bbt serve`: a model's forward pass over HTTP, and nothing else of it."""
