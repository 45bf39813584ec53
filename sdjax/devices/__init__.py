"""How devices and processes share the work: layouts, placement, compiled programs, and what programs cost."""
