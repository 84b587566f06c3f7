"""The Resource-aware Dispatcher: which stage of which request gets which team, now.

Read `trident.py` first; every other module here is one of its verbs.
"""
