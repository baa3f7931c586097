"""What has become of every request: one shared page of the HTTP half, and what is read from it."""
