"""`hse-dist doctor`: what of an installation, a machine and a cluster works, before a job finds out the hard way."""
