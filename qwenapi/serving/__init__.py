"""The HTTP server as a process: gunicorn, its supervisor's view of it, and how it is replaced."""
