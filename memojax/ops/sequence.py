"""Sequences, resolved while tracing."""
