"""Training under a random schedule of faults, compared with training that nobody disturbs."""
