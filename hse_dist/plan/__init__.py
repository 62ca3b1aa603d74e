"""`hse-dist plan`: what a run would take on machines that are not here. Models of bytes and time are pure functions."""
