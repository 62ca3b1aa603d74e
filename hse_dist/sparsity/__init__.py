"""Which entries are live: the start, the rewire, and the server that decides for all ranks."""
