"""The engine process: socket thread, admission, step loop; and the stub engine."""
