"""Systems that draw pictures."""
