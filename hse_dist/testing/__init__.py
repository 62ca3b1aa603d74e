"""Help for tests: real process groups, small prepared data."""
