"""One file for each system of the literature, by domain."""
