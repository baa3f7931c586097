"""Keep processes alive: start, watch, restart, reload, stop; never imports torch."""
