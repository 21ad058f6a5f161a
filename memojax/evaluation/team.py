"""Assigns policies to agents, and connects each policy with the environment."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Protocol

from ..errors import EvaluationError
from ..inferer.base import Inferer
from ..inferer.pool import PoolMember
from ..inferer.pool_seats import PoolSeats
from ..inferer.predictor import facts_of
from ..spaces.actions import action_kind
from ..spaces.connection import Connection, Wiring, join
from ..spaces.observations import ObservationReader
from ..spaces.transforms import name_of
from .acting import Player
from .advice import advice_on
from .envs import EnvPool
from .parallel_envs import ParallelPool, policy_names
from .rollout import Setting


class Spaces(Protocol):
    """An object with an observation space and an action space: a pool, or an agent of it."""

    @property
    def name(self) -> str:
        """For errors."""
        ...

    @property
    def observation_space(self) -> Any:
        """Gymnasium's."""
        ...

    @property
    def action_space(self) -> Any:
        """Gymnasium's."""
        ...


def connect(inferer: Inferer, pool: Spaces, wiring: Wiring, deterministic: bool) -> Connection:
    """Join the spaces of an environment and a model.

    Raises:
        SpaceMismatchError: they do not fit; both sides are named.
    """
    reader = ObservationReader(pool.observation_space, wiring.observation_transforms)
    kind = action_kind(pool.action_space, pool.name)
    return join(facts_of(inferer), reader, kind, pool.name, wiring, deterministic)


def join_players(
    pool: EnvPool, policies: Mapping[str, Inferer], wiring: Wiring, model: str, deterministic: bool
) -> dict[str, Player]:
    """Agent -> its policy; agents with the same policy and equal spaces share one player, and its batch.

    Raises:
        SpaceMismatchError: spaces do not fit a model; the message names both sides.
        EvaluationError: an agent has no policy, or a policy has no agent.
    """
    if not isinstance(pool, ParallelPool):
        if "" not in policies:
            raise EvaluationError(f"{pool.name} has one agent: pass one policy, not a mapping of agents")
        connection = connect(policies[""], pool, wiring, deterministic)
        return {"": Player(policies[""], connection, model, pool.name, deterministic)}
    keys = dict.fromkeys(pool.agents, "") if "" in policies else policy_names(pool.agents, policies)
    joined: list[tuple[Any, Any, Player]] = []
    players = {}
    sets: dict[str, Hashable] = {}
    for agent, key in keys.items():
        spaces, policy = pool.spaces_of(agent), policies[key]
        both = spaces.observation_space, spaces.action_space
        # Members of one pool share a player, so that all of them are answered in one call.
        shared: Any = key
        if isinstance(policy, PoolMember):
            sets[agent], shared = policy.name, policy.pool
        player = next((player for known, its, player in joined if known == shared and its == both), None)
        if player is None:
            policy = PoolSeats(policy.pool) if isinstance(policy, PoolMember) else policy
            connection = connect(policy, spaces, wiring, deterministic)
            player = Player(policy, connection, model, pool.name, deterministic)
            player.sets = lambda name, episode: sets[name]
            joined.append((shared, both, player))
        players[agent] = player
    return players


def setting_of(
    players: Mapping[str, Player],
    model: str,
    asked: int,
    num_envs: int,
    deterministic: bool,
    metadata: Mapping[str, str],
) -> Setting:
    """The facts before the first reset; each of several policies is named after its first agent."""
    distinct: dict[Player, str] = {}
    for agent, player in players.items():
        distinct.setdefault(player, f"{agent}: " if agent else "")
    if len(distinct) == 1:
        distinct = dict.fromkeys(distinct, "")
    joins = [(label, player.connection) for player, label in distinct.items()]
    return Setting(
        model=model,
        asked=asked,
        num_envs=num_envs,
        deterministic=deterministic,
        metadata=dict(metadata),
        action="; ".join(f"{label}{joined.actor}" for label, joined in joins),
        feeds=tuple(f"{label}{fed}" for label, joined in joins for fed in joined.told(deterministic)),
        observation_transforms=tuple(map(name_of, joins[0][1].observation_transforms)),
        action_transforms=tuple(
            f"{label}{name_of(one)}" for label, joined in joins for one in joined.action_transforms
        ),
        advice=tuple(
            f"{label}{said}"
            for player, label in distinct.items()
            for said in advice_on(player.inferer, player.connection)
        ),
    )
