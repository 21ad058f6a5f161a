"""memojax on Ray: evaluations, batch inference and serving in many processes (extra `ray`).

Inside this package `import ray` means Ray itself; it is imported when something runs, never by
`import memojax`.
"""

from .data import Predictor as Predictor
from .evaluating import evaluate as evaluate
from .serving import deployment as deployment
