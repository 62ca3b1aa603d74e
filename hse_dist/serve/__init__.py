"""Answers over HTTP: an export behind Ray Serve."""
