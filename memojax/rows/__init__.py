"""A batch as arrays: states, responses, checks, the scratch pad, and where device arrays run."""
