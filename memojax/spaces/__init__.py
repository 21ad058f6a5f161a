"""Connects an environment with a model: observations to inputs, outputs to actions, and hidden state.

This room needs no inferer, only the names and shapes of the model's inputs and outputs.
"""
