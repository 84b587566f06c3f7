"""Profiles that ship (`l20.json`, `h100.json`), their schema, and the program that builds them."""
