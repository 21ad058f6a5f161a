"""How the spaces of an environment and a model fit: observations to inputs, outputs to actions, hidden state.

No inferer is needed here: all that counts is the inputs and outputs of the model, by name and shape.
"""
