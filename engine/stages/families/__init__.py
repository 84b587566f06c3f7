"""One module per diffusers pipeline class: all that differs between families."""
