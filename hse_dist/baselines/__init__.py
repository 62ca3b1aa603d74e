"""Models to compare with, fitted in one process from the same prepared data."""
