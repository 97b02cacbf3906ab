"""What a step of a client takes, by its count: bytes, operations and exchanges; no seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Of one client and one step (one batch): means over a run's first batches where rows differ in length.

    Attributes:
        peak_bytes: a client's `client_peak_bytes` as the meter counts it, the largest.
        parameter_bytes: weights of the device's part, as held; part of the above.
        up_bytes: what the ledger will say of a step, by the closed forms.
        down_bytes: likewise, in the steady state: with the missed rows of all steps as the sampling will have it.
        device_forward: operations (2 for a multiply-add) of one forward pass of the client's part on its batch.
        passes: forward passes of the device's part in a step, all (probes, exact's recomputation).
        device_backward: operations of the device's backward passes.
        overlapping_passes: of `passes`, those that need no λ and may overlap with link and server.
        server_forward: operations for one client's batch, of all forward passes of a step.
        server_backward: likewise, of all backward passes.
        exchanges: messages up with an answer, in a step: each costs a round trip.
    """

    peak_bytes: int
    parameter_bytes: int
    up_bytes: float
    down_bytes: float
    device_forward: float
    passes: float
    device_backward: float
    overlapping_passes: float
    server_forward: float
    server_backward: float
    exchanges: int
