"""One module per revision, in the order of their numbers; each knows only the one before."""
