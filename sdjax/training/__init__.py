"""What training minimises, and the loop that runs it."""
