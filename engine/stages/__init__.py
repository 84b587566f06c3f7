"""Stages: what a worker process runs. The only package besides `engine.worker` that knows torch."""
