"""Turns a function of rows into executables, one for each batch size."""
