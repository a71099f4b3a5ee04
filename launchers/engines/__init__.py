"""One file for each engine: how it is started and known to be ready. Pure; `table.py` has them all."""
