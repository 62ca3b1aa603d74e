"""Training: the step, the loop around it, and the driver that starts both on Ray or in one process."""
