"""Runs many models in one frame."""

from .brain import BrainId as BrainId
from .runtime import Runtime as Runtime
