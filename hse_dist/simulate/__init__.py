"""A Ray cluster of several nodes on this machine: real raylets, real node failures, one loopback address a node."""
