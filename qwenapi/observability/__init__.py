"""Log lines and traces of the HTTP half."""
