"""The host side of an engine step: who runs, where blocks are, which tokens are chosen.

Knows tokens and blocks. Refuses to know text, sockets and how a layer is computed.
"""
