"""The HTTP server as a process, and both halves as groups of processes that a reload replaces.

A reload has three steps: (1) settings are read anew, by config_reload.py into a StartupConfig; (2)
process_groups.py makes processes of them; (3) workers/supervisor/reload.py replaces the old ones.
"""
