"""`hse-dist inspect`: what the rows of a run or an export say, in the ids of its items."""
