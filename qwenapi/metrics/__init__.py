"""The shared-memory metrics store: what has become of every request, and the reports of it."""
