"""The HTTP side of the engines: clients of their processes, routing, replay of lost requests."""
