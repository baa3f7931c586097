"""Metrics: what has become of every request, in shared memory, and the reports of it.

How to add one. Of requests: a field in layout.py, counted by RequestMetrics in store.py, shown by
prometheus.py (and report.py). Of an engine: a field of EngineStats in workers/engine_core.py and of
the layout in workers/wire/engine_stats.py, published by workers/worker/, shown by prometheus.py.
"""
