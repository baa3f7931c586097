"""Settings: one table of them all, where their values come from, profiles, folders."""
