"""What a request runs in: shared services, its key and profile, allowed origins."""
