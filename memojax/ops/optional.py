"""Optionals, resolved while tracing."""
