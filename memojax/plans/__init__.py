"""From a function of rows to executables, one for each batch size."""
