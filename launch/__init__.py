"""Job launchers and ahead-of-time compilation: clusters, local processes, cost estimates.

Nothing here trains or samples; everything calls the same functions as `jaxar.main`.
"""
