"""The border of HTTP: request bodies in, JSON answers and event streams out."""
