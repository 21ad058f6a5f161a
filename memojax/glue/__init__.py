"""How a policy fits the tools around it: plain calls, PyTorch, Stable-Baselines3, and many weights at
once."""

from .pool import PolicyPool as PolicyPool
from .predictor import Predictor as Predictor
