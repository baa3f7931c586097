"""qwenapi: HTTP and text in front of the model server `workers`. Importing it loads nothing."""

__version__ = "0.1.0"
