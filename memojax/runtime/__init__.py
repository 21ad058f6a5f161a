"""Many models, one frame."""

from .runtime import Runtime as Runtime
from .state import BrainId as BrainId
