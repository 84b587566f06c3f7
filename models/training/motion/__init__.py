"""The moving-shapes model: data by program, clip checker, training, evaluation, export.

Starts from the trained stills of `models.training` and knows nothing of the serving code.
"""
