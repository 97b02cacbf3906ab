"""The time that a run would have taken on a fleet's devices and links: a clock apart from the machine's."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, final

from halfback.planning.profiles import DeviceClass, Fleet
from halfback.planning.steps import cohort_time, equal_share, step_time
from halfback.planning.work import Work

Direction = Literal["up", "down"]


@final
class Clock:
    """Hears what goes over the links, and adds up rounds.

    A round takes what a step of its cohort would that has all the round's work in it: the bytes that went over each
    client's link and the forward passes that were made, as they were counted; of backward passes and of the server what
    `work_of` says. Who speaks together shares what is shared of the network equally. Evaluations take no time here.
    """

    def __init__(
        self, fleet: Fleet, devices: Sequence[DeviceClass], work_of: Callable[[int], Work], *, in_turn: bool
    ) -> None:
        """`devices`: of each client. `work_of`: a client's step. `in_turn`: clients go through a round one by one."""
        self.seconds = 0.0
        self._fleet, self._devices, self._work_of, self._in_turn = fleet, devices, work_of, in_turn
        self.void()

    def void(self) -> None:
        """Forgets what was heard since the last round ended."""
        self._bytes: dict[Direction, dict[int, int]] = {"up": {}, "down": {}}
        self._exchanges: dict[int, int] = {}

    def hear(self, client: int, direction: Direction, data: bytes) -> None:
        """A message has arrived."""
        of = self._bytes[direction]
        of[client] = of.get(client, 0) + len(data)
        if direction == "up":
            self._exchanges[client] = self._exchanges.get(client, 0) + 1

    def end_round(self, steps: int, passes: int) -> None:
        """The clients that were heard have ended a round of so many steps, with so many forward passes between them."""
        if not self._exchanges:
            return
        together = 1 if self._in_turn else len(self._exchanges)
        shares = [equal_share(of, together) for of in (self._fleet.uplink_megabits, self._fleet.downlink_megabits)]
        times = []
        for client, exchanges in self._exchanges.items():
            work = self._work_of(client)
            done = replace(
                work,
                up_bytes=self._bytes["up"][client],
                down_bytes=self._bytes["down"].get(client, 0),
                exchanges=exchanges,
                passes=passes / len(self._exchanges),
                device_backward=steps * work.device_backward,
                server_forward=steps * work.server_forward,
                server_backward=steps * work.server_backward,
                device_blocks=steps * work.device_blocks,
                server_blocks=steps * work.server_blocks,
                steps=steps,
            )
            times.append(step_time(done, self._devices[client], self._fleet, *shares))
        self.seconds += cohort_time(times, in_turn=self._in_turn).total
        self.void()
