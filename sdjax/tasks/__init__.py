"""Text and pictures to pictures: options, plans, compiled stages, and the tasks themselves."""
