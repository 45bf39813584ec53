"""Training: the losses, the loop that minimises them, checkpoints, and the folder of a run."""
