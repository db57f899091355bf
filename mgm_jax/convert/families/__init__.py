"""Tables of names: one file a weight family."""
