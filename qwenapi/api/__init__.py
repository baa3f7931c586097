"""The interfaces: one package each, none of which knows another."""
