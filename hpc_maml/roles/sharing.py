"""Tasks that several observers of a team play together, each some of the episodes.

The owner of a task has all of its episodes in the end, and adapts to them; the others get from it
what they play the next phase with.
"""

import time
from typing import Any

import numpy as np

from hpc_maml.mpi.exchange import Messenger
from hpc_maml.roles.messages import Adapted, Assignment, Episodes, Player, Share, Tag
from hpc_maml.sampling.rollout import Play


class Sharing:
    """An observer's side of the tasks of an assignment that it shares with others."""

    def __init__(self, team: Messenger, assignment: Assignment, episodes: int) -> None:
        """Begin; a phase has so many ``episodes``."""
        self.team = team
        self.waited = 0.0  # seconds, for others
        rank, number = team.comm.rank, len(assignment.tasks)
        self.owned = [share for share in assignment.shares if share.players[0].rank == rank]
        self.of_others = [share for share in assignment.shares if share.players[0].rank != rank]
        others = {share.place for share in self.of_others}
        self.own = [place for place in range(number) if place not in others]  # tasks
        self.chosen: np.ndarray | None = None  # bool [G, B], the episodes that this one plays
        if assignment.shares:
            self.chosen = np.ones((number, episodes), bool)
            for share in assignment.shares:
                mine = self._mine(share)
                self.chosen[share.place] = False
                self.chosen[share.place, mine.start : mine.stop] = True

    async def complete(self, batches: np.ndarray, play: Play) -> None:
        """Hand on the episodes of others' tasks; fill in those that others played of own ones."""
        for share in self.of_others:
            found = episodes_of(batches[share.place], play, share.place, self._mine(share))
            self.team.send(found, share.players[0].rank, Tag.EPISODES)
        for share in self.owned:
            for player in share.players[1:]:
                what = "the episodes of a task that observers share"
                played = await self._receive(Tag.EPISODES, what, player.rank)
                put_in(batches[share.place], play, share.place, player, played)

    async def hand_back(self, play: Play) -> None:
        """Exchange what the next phase of shared tasks is played with, which changes ``play``."""
        for share in self.owned:
            for player in share.players[1:]:
                rows = _rows(play, share.place, player)
                adapted = Adapted(play.parameters[share.place].copy(), rows)
                self.team.send(adapted, player.rank, Tag.ADAPTED)
        for share in self.of_others:
            what = "the adaptation to a task that observers share"
            adapted = await self._receive(Tag.ADAPTED, what, share.players[0].rank)
            play.parameters[share.place] = adapted.parameters
            if play.memory is not None:
                mine = self._mine(share)
                play.memory[share.place, mine.start : mine.stop] = adapted.memory

    async def _receive(self, tag: Tag, what: str, source: int) -> Any:
        began = time.perf_counter()
        message, _ = await self.team.receive(tag, what, source)
        self.waited += time.perf_counter() - began
        return message

    def _mine(self, share: Share) -> Player:
        """Return what this observer plays of a task."""
        (mine,) = (player for player in share.players if player.rank == self.team.comm.rank)
        return mine


def episodes_of(batch: np.ndarray, play: Play, place: int, player: Player) -> Episodes:
    """Return the episodes of a player in the trajectory batch of the task at ``place``."""
    fields = {name: batch[name][rows].copy() for name, rows in _of_episodes(batch.dtype, player)}
    return Episodes(fields, int(batch["diverged"]), _rows(play, place, player))


def put_in(batch: np.ndarray, play: Play, place: int, player: Player, episodes: Episodes) -> None:
    """Put what a player has played into the trajectory batch of the task at ``place``."""
    for name, rows in _of_episodes(batch.dtype, player):
        batch[name][rows] = episodes.fields[name]
    batch["diverged"] += episodes.diverged
    if play.memory is not None:
        play.memory[place, player.start : player.stop] = episodes.memory


def _rows(play: Play, place: int, player: Player) -> np.ndarray | None:
    """Return a copy of the memory of a player's episodes, if the policy has one."""
    return None if play.memory is None else play.memory[place, player.start : player.stop].copy()


def _of_episodes(dtype: np.dtype, player: Player) -> list[tuple[str, tuple[slice, ...]]]:
    """Return the fields of a batch with an entry for each episode, and where a player's are."""
    rows = slice(player.start, player.stop)
    of_batch = [(name, len(dtype[name].shape)) for name in dtype.names or ()]
    return [
        (name, (rows,) if dimensions == 1 else (slice(None), rows))
        for name, dimensions in of_batch
        if dimensions
    ]
