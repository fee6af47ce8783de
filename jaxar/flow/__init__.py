"""The mathematics of flows: paths, times, solvers and guidance. No parameters, no modules."""
