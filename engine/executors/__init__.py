"""Executors: real worker processes (`local`) and a cost model on any clock (`fake`)."""
