"""The class table: one vector for each class, which cross-attention sees as a single token."""
