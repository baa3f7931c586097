"""Metrics: what has become of every request, in shared memory; and how to add one.

How to add one, by what it is of; prometheus.py shows it, report.py what the JSON reports have:

    a request         a field of PROFILE in layout.py, counted by RequestMetrics in store.py
    an HTTP process   a field of SLOT in layout.py, written in store.py, gathered in snapshot.py
    an engine         a field of EngineStats, a counter also in ENGINE_COUNTERS, both in
                      workers/wire/engine_stats.py; its value in workers/engine/engine.py and
                      workers/worker/stub.py
"""
