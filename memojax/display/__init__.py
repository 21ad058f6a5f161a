"""Views of an inferer: text in a terminal, HTML in a notebook, a figure of its latency."""

from .card import Card as Card
from .card import PlanRow as PlanRow
from .card import busiest as busiest
from .card import card_of as card_of
from .card import html_of as html_of
from .card import text_of as text_of
