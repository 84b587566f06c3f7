"""Train, judge and export the shapes model: data by program, checker, autoencoder, denoiser.

Knows nothing about the serving code, and the serving code knows nothing about it: the only thing
that passes between them is the pipeline folder that `export` writes.
"""
