"""Assigns policies to agents, and connects each policy with the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import EvaluationError
from ..inferer.base import Inferer
from .acting import Player
from .advice import advice_on
from .connection import Wiring, connect
from .envs import EnvPool
from .parallel_envs import ParallelPool, policy_names
from .rollout import Setting
from .transforms import name_of


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
        return {"": Player(connection, model, pool.name, deterministic)}
    keys = dict.fromkeys(pool.agents, "") if "" in policies else policy_names(pool.agents, policies)
    joined: list[tuple[str, Any, Player]] = []
    players = {}
    for agent, key in keys.items():
        spaces = pool.spaces_of(agent)
        both = spaces.observation_space, spaces.action_space
        player = next((player for known, its, player in joined if known == key and its == both), None)
        if player is None:
            connection = connect(policies[key], spaces, wiring, deterministic)
            player = Player(connection, model, pool.name, deterministic)
            joined.append((key, both, player))
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
        action="; ".join(f"{label}{join.actor}" for label, join in joins),
        feeds=tuple(f"{label}{fed}" for label, join in joins for fed in join.told(deterministic)),
        observation_transforms=tuple(map(name_of, joins[0][1].observation_transforms)),
        action_transforms=tuple(
            f"{label}{name_of(one)}" for label, join in joins for one in join.action_transforms
        ),
        advice=tuple(f"{label}{said}" for label, join in joins for said in advice_on(join)),
    )
