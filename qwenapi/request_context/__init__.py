"""What a request runs in: the process's services, its caller, keys, allowed origins, its prompt."""
