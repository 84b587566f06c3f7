"""Finished bytes: where they lie, and links to them that expire."""
