"""Names, tracing, the online monitor and logging. A leaf: imports nothing of ours."""
