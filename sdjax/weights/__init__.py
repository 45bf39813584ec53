"""Files of other projects <-> our parameter trees: names (the table), convert (the arithmetic), folder (the layout)."""
