"""Wire types: what travels in request and response bodies, and nothing else."""
