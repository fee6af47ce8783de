"""How fast jaxar is, beside the official code, the device's own rates and the least work.

Nothing here trains or samples by itself; everything runs the programs of `jaxar.training` and
`jaxar.runs`.
"""
