"""Read a model file as a graph."""

from .graph import Graph as Graph
from .graph import Node as Node
from .graph import Value as Value
from .load import LATEST_REVIEWED_OPSET as LATEST_REVIEWED_OPSET
from .load import Model as Model
from .load import load_model as load_model
