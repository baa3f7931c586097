"""The clients of the engines: connections, routing, and replay of what a lost engine had."""
