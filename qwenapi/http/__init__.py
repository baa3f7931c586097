"""The border of HTTP: request bodies in; JSON responses and streams out."""
