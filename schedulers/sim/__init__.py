"""The simulator: the real core loop on a virtual clock. All its figures are simulated."""
