"""Sharded state on disk: written whole, found again, the best and the newest kept."""
