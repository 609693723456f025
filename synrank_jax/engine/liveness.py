"""What processes tell each other, and who of them is at fault: pure functions of what was told."""

import json
from collections.abc import Mapping
from typing import NamedTuple, Self

from synrank_jax.cli import EXIT_HOST_LOST
from synrank_jax.engine.preemption import Agreed, Offer


class Record(NamedTuple):
    """What one process tells.

    name: its host; beat: counts up; begun, completed: steps; busy: it starts, compiles,
    evaluates, or writes the last checkpoint; offer, agreed: about stopping (`preemption`);
    code, message: how it ended.
    """

    name: str
    beat: int = 0
    begun: int = 0
    completed: int = 0
    busy: bool = True
    offer: Offer = Offer(None, None)
    agreed: Agreed | None = None
    code: int | None = None
    message: str = ""

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        values["offer"] = Offer(*values["offer"])
        values["agreed"] = values["agreed"] and Agreed(*values["agreed"])
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(self._asdict())


class Seen(NamedTuple):
    """A record, and when it last changed by this process' monotonic clock, in seconds."""

    record: Record
    at: float


class Verdict(NamedTuple):
    """Why the run cannot go on, and the exit code that says so."""

    code: int
    message: str


def judge(
    seen: Mapping[int, Seen], own: int, *, now: float, silence_s: float, idle_s: float
) -> Verdict | None:
    """What is wrong with the hosts; None: nothing.

    Args:
        seen: Process -> what it told.
        own: This process.
        now: Monotonic time, in seconds.
        silence_s: A host that told nothing for longer is lost.
        idle_s: For so long no host completed a step, 0 if that is not too long.
    """
    for index, (record, _) in seen.items():
        if index != own and record.code:
            # Who ended for a lost host has named it.
            named = record.code == EXIT_HOST_LOST
            who = "" if named else f"{_host(index, record)} ended: "
            return Verdict(record.code, who + record.message)
    running = {index: each for index, each in seen.items() if each.record.code is None}
    silent = {
        index: f"silent for {now - at:.0f} s"
        for index, (_, at) in running.items()
        if now - at > silence_s
    }
    if own in silent:
        return coordinator_lost(seen, silent[own])
    if silent:
        return _lost(running, silent)
    if not idle_s or not running:
        return None
    least = min(record.begun for record, _ in running.values())
    late = {
        index: f"has not begun the next in {idle_s:.0f} s"
        for index, (record, _) in running.items()
        if record.begun == least
    }
    if len(late) < len(running):
        return _lost(running, late)
    return Verdict(
        EXIT_HOST_LOST, f"no host completed step {least} in {idle_s:.0f} s, all wait in it"
    )


def coordinator_lost(seen: Mapping[int, Seen], what: str) -> Verdict:
    """The verdict when the store cannot be reached: it is on process 0."""
    return _lost(seen, {0: what})


def _lost(seen: Mapping[int, Seen], late: Mapping[int, str]) -> Verdict:
    message = "; ".join(
        f"{_host(index, seen[index].record)}: last completed step "
        f"{seen[index].record.completed}, {what}"
        for index, what in late.items()
    )
    waiting = [index for index in seen if index not in late]
    if waiting:
        step = 1 + max(seen[index].record.completed for index in waiting)
        hosts, verb = ("host", "waits") if len(waiting) == 1 else ("hosts", "wait")
        message += f"; {hosts} {', '.join(map(str, waiting))} {verb} at step {step}"
    return Verdict(EXIT_HOST_LOST, message)


def _host(index: int, record: Record) -> str:
    return f"host {index} ({record.name})"
