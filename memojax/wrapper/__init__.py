"""Logic around inferers."""
