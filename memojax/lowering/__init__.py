"""Lower a `Graph` to a function of rows."""
