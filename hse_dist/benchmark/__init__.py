"""Claims of speed and memory as runs that anyone can repeat: side by side, medians with spread, one JSON line."""
