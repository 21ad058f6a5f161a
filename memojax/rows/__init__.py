"""A batch as arrays: states, responses, checks, the scratch pad, and the choice of a device."""
