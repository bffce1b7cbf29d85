"""Where images come from: one file for each kind of source, and `open`, which chooses among them."""
