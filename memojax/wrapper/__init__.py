"""Wrappers: layers of logic around an inferer, for noise and for hidden state."""
