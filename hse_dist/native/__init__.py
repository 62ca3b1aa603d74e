"""Compiled CPU kernels: called where they were built and fit, with a plain torch or numpy path beside each of them."""
