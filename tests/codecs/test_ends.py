"""Error feedback: what was not sent is sent later."""

import torch
from matrices import random, samples
from torch import Tensor

from halfback.codecs import make_sender, parse
from halfback.codecs.chain import Chain
from halfback.codecs.ends import FeedbackSender, Plain
from halfback.codecs.sparsify import TopK

WIDTH = 40


def chain(ratio: float = 0.1) -> Chain:
    return Chain([TopK(ratio).bind(WIDTH, torch.float32)], width=WIDTH, dtype=torch.float32)


def sum_received(sender: FeedbackSender | Plain, rows: Tensor, times: int) -> Tensor:
    both, batch = chain(), samples([9], len(rows))
    return sum((both.decode(sender.encode(rows, batch), len(rows)) for _ in range(times)), torch.zeros_like(rows))


def test_what_was_sent_adds_up_to_what_was_meant() -> None:
    """Σ sent = Σ meant − what is held back, and that stays below (1 − δ)/δ of a message, δ = kept ÷ width.

    ‖e'‖ ≤ √(1 − δ) ‖e + g‖ (Stich et al., arXiv 1809.07599), so ‖e‖ ≤ √(1 − δ) ÷ (1 − √(1 − δ)) · ‖g‖.
    """
    rows = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    root = (1 - 4 / WIDTH) ** 0.5
    bound = root / (1 - root) * rows.norm(dim=1)
    for times in (1, 10, 100, 1000):
        missing = times * rows - sum_received(FeedbackSender(chain()), rows, times)
        assert bool((missing.norm(dim=1) <= bound * (1 + 1e-3)).all()), times
    without = 1000 * rows - sum_received(Plain(chain()), rows, 1000)
    assert bool((without.norm(dim=1) > 20 * bound).all())  # so the test can tell


def test_the_first_message_is_that_without_feedback() -> None:
    rows = random(3, WIDTH)
    for one, other in zip(FeedbackSender(chain()).encode(rows, samples([1], 3)), chain().encode(rows), strict=True):
        assert torch.equal(one, other)


def test_samples_do_not_feel_one_another() -> None:
    """The feedback of a sample, among others and alone, in another order and with others in between."""
    rows = {sample: random(sample + 1, WIDTH, seed=sample) for sample in range(4)}
    together, alone = FeedbackSender(chain()), {sample: FeedbackSender(chain()) for sample in rows}
    for batch in ([0, 1, 2], [2, 3], [1, 0], [3, 2, 1, 0], [0, 3]):
        matrix = torch.cat([rows[sample] for sample in batch])
        counts = [len(rows[sample]) for sample in batch]
        came = chain().decode(together.encode(matrix, samples(batch, *counts)), len(matrix)).split(counts)
        for sample, piece in zip(batch, came, strict=True):
            own = alone[sample].encode(rows[sample], samples([sample], sample + 1))
            assert torch.equal(piece, chain().decode(own, sample + 1))


def test_a_sample_of_another_length_starts_anew() -> None:
    sender = FeedbackSender(chain())
    sender.encode(random(3, WIDTH), samples([1], 3))
    rows = random(2, WIDTH, seed=5)
    parts = sender.encode(rows, samples([1], 2))
    assert all(torch.equal(one, other) for one, other in zip(parts, chain().encode(rows), strict=True))


def test_a_repeated_upload_is_neither_corrected_nor_remembered() -> None:
    sender, rows = FeedbackSender(chain()), random(3, WIDTH)
    sender.encode(rows, samples([1], 3))
    before = [tensor.clone() for tensor in sender.tensors()]
    probe = random(3, WIDTH, seed=1)
    parts = sender.encode(probe, samples(None, 3))
    assert all(torch.equal(one, other) for one, other in zip(parts, chain().encode(probe), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, sender.tensors(), strict=True))


def test_a_sender_continues_from_its_state() -> None:
    rows, batch = random(3, WIDTH), samples([4, 5], 1, 2)
    one, other = FeedbackSender(chain()), FeedbackSender(chain())
    one.encode(rows, batch)
    other.load_state(*one.state())
    for a, b in zip(one.encode(rows, batch), other.encode(rows, batch), strict=True):
        assert torch.equal(a, b)


def test_what_is_kept_of_a_sample_is_not_a_view_of_the_batch() -> None:
    sender = FeedbackSender(chain())
    sender.encode(random(100, WIDTH), samples(list(range(100)), *[1] * 100))
    sender.encode(random(1, WIDTH), samples([3], 1))
    assert sum(t.untyped_storage().nbytes() for t in sender.tensors()) == 100 * WIDTH * 4


def test_feedback_is_for_chains_that_ask_for_it() -> None:
    for name in ("topk", "sign"):
        kinds = [
            type(make_sender(parse([{"name": name, "feedback": on}], "x"), width=9, dtype=torch.float32, where="x"))
            for on in (True, False)
        ]
        assert kinds == [FeedbackSender, Plain]
