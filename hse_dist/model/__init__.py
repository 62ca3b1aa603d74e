"""The arithmetic of a step; it knows no ranks, no tables and no files."""
