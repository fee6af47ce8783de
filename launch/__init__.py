"""Starting jobs and knowing beforehand: clusters, local processes, ahead-of-time compilation.

Nothing here trains or samples; everything calls the same functions as `jaxar.main`.
"""
