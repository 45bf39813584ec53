"""HED, a detector of soft edges (arXiv 1504.06375)."""
