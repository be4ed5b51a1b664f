"""The mathematics of a test: pure functions over counts and sums, valid at every look. Nothing here reads a record."""
