"""Scheduling policies behind the engine's ports: pure, deterministic, without torch or HTTP."""
