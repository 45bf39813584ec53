"""How computers share the work: layouts, processes, placement, compiled programs, and what they cost."""
