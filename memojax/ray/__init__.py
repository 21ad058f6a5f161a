"""memojax on Ray: evaluations, batch inference and serving in many processes (extra `ray`).

Inside this package `import ray` means Ray itself. `import memojax` never imports it; a first call here does.
"""

from .data import Predictor as Predictor
from .evaluating import evaluate as evaluate
from .serving import deployment as deployment
