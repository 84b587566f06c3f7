"""What the dispatcher is measured against: published ways to schedule diffusion, on the same ports.

`dispatcher` runs any of them: a `Rule` decides, all else is common. Two rules cover the baselines of
TridentServe's evaluation: `pipeline` (one team for all stages of a request) and `stagewise` (each
stage on its own). They differ in which devices a request may take (`buckets`, `bestfit`) and in the
order of those who wait (`orders`). `catalogue` knows their names.
"""
