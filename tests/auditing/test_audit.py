"""Whole audits of tiny set-ups: what they find and must not, what they write, and how they end."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from command import halfback, process, refusal

import halfback as hb
from halfback.auditing.labels import LOSS
from halfback.config import to_tree
from halfback.errors import UserError
from halfback.report.audited import audit_table
from halfback.testing import small
from halfback.testing.texts import BAD, GOOD

MINUTES = 0.05


def of(audit: hb.Audit, about: str, **where: Any) -> list[hb.Finding]:
    found = [each for each in audit.findings if each.about == about]
    return [each for each in found if all(getattr(each, key) == value for key, value in where.items())]


@pytest.fixture(scope="module")
def u_shape(tiny_bert: Path, sentences: Path) -> hb.Audit:
    config = small.texts("ho_sfl", tiny_bert, sentences, model__head=0, task__holdout=0.4)
    return hb.audit(config, minutes=MINUTES, progress=False)


def test_a_server_reads_tokens_and_labels_but_not_through_much_noise(u_shape: hb.Audit) -> None:
    for cut in (1, 2):
        plain = of(u_shape, "tokens", cut=cut, sent="float32")
        drowned = of(u_shape, "tokens", cut=cut, sent="noise 4")
        assert [each.conclusion for each in plain] == ["leaks", "leaks"]
        assert max(each.value for each in plain) > 0.95
        assert max(each.value for each in drowned) < 0.35
    found = of(u_shape, "labels")
    assert len(found) == 4
    by_how = {each.how: each for each in found}
    loss = by_how.pop(LOSS)
    assert all(each.conclusion == "leaks" and each.value > 0.9 for each in by_how.values())
    assert loss.value > loss.chance + 0.1  # two labellings may have one loss, up to rounding
    assert all(each.planted >= each.needed and not each.fence for each in u_shape.findings)
    assert any("trained on nobody's rows yet" in sentence for sentence in u_shape.said)


@pytest.mark.parametrize(("noise", "reads"), [({"epsilon": 8}, False), ({"noise": 0.001}, True)])
def test_what_noise_with_a_guarantee_hides(
    noise: dict[str, float], reads: bool, tiny_bert: Path, sentences: Path
) -> None:
    """The attacks that read every token of float32 find no more than chance at ε = 8; with too little noise they do."""
    chain = [{"name": "private", "clip": 20, **noise}]
    config = small.texts("ho_sfl", tiny_bert, sentences, codecs__activations_up=chain, task__holdout=0.4)
    audit = hb.audit(config, minutes=MINUTES, cuts=[1], progress=False)
    plain, own = (of(audit, "tokens", sent=sent) for sent in ("float32", "the recipe's own"))
    assert min(each.value for each in plain) > 0.95
    assert all(not each.fence for each in (*plain, *own))
    if reads:
        assert max(each.value for each in own) > 0.9
    else:
        assert [each.conclusion for each in own] == ["not by this attack"] * 2
        assert max(each.value - each.chance - each.margin for each in own) <= 0
    assert any(said.startswith("Tokens at cut 1 (the recipe's own): recovered") for said in audit.said)
    (curve,) = audit.values["curves"]
    leaked = {point["sent"]: point["leaked"] for point in curve["points"]}
    assert list(leaked)[:5] == ["float32", "noise 0.5", "noise 1", "noise 2", "noise 4"]
    assert leaked["the recipe's own"] == max(each.value for each in own)


def test_a_report_has_rates_and_nothing_of_anybodys_rows(u_shape: hb.Audit, tmp_path: Path) -> None:
    out = u_shape.write(tmp_path / "audit")
    written = json.loads((out / "audit.json").read_text())
    assert written == u_shape.values
    page = (out / "audit.html").read_text()
    for word in (*GOOD, *BAD, "film"):
        for text in (page, json.dumps(written)):
            assert not re.search(rf"\b{word}\b", text), word
    assert "<script" not in page
    assert "trained inverter" in page
    assert len(audit_table(u_shape.values)[1]) < len(audit_table(u_shape.values, every=True)[1])


def test_images_are_rebuilt_and_a_run_has_quality_and_members(tmp_path: Path) -> None:
    run = hb.train(small.images("split_lora", steps=4, eval_every=4), tmp_path / "run", progress=False)
    audit = hb.audit(run.folder, minutes=0.12, cuts=[1], progress=False)
    plain, drowned = (of(audit, "images", sent=sent)[0] for sent in ("float32", "noise 4"))
    assert plain.conclusion == "leaks"
    assert plain.value > drowned.value + 1
    assert plain.beside["SSIM"] > plain.beside["SSIM by chance"]
    assert plain.quality is not None
    (member,) = of(audit, "membership")
    assert not member.fence
    assert member.how.endswith("training rows that no batch had yet")
    assert abs(member.value - 0.5) < 0.3  # four steps make nobody known
    assert any("sent in the clear" in sentence for sentence in audit.said)


@pytest.mark.slow
def test_members_of_an_overfitted_run_are_told_apart(tmp_path: Path) -> None:
    """Ten images of each of four clients, again and again; no training row is left for the other side."""
    rates = {"top__lr": 1e-2, "bottom__lr": 1e-3, "bottom__optimizer": "adamw", "sampled_clients": 4}
    changes = {"task__train_rows": 40, "steps": 150, "eval_every": 150, "task__validation_rows": 200}
    run = hb.train(small.images("split_lora", **changes, **rates), tmp_path / "run", progress=False)
    audit = hb.audit(run.folder, minutes=0.02, cuts=[1], progress=False)
    (member,) = of(audit, "membership")
    assert (member.fence, member.conclusion) == ("", "leaks")
    assert member.how.endswith("validation rows")
    assert any("may tell the sources apart" in sentence for sentence in audit.said)


def test_methods_without_activations_are_said_to_have_none(tiny_bert: Path, sentences: Path) -> None:
    audit = hb.audit(small.texts("decomfl", tiny_bert, sentences, task__holdout=0.4), minutes=0.02, progress=False)
    assert {each.about for each in audit.findings} == {"rows by slopes"}
    assert any(sentence.startswith("Activations: this method sends none") for sentence in audit.said)
    first, alone = audit.findings
    assert alone.value >= first.value > 0.5


def test_the_command_says_what_it_does_and_keeps_to_its_time(tmp_path: Path) -> None:
    config = to_tree(small.images("ho_sfl"))
    (tmp_path / "own.yaml").write_text(json.dumps(config))
    begun = time.monotonic()
    running = process("audit", tmp_path / "own.yaml", "--minutes", "0.05", "--cuts", "1", "--out", tmp_path / "out")
    assert running.stdout is not None
    assert "audit: getting ready" in running.stdout.readline()
    assert time.monotonic() - begun < 5
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert "Images" in out
    assert f"audit: {tmp_path / 'out' / 'audit.html'}" in out
    assert (tmp_path / "out" / "audit.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("quickstart", "--cuts", "1,x"), "--cuts '1,x': whole numbers between commas are allowed, as 1,2,5"),
        (("quickstart", "model.pretrain=null", "--cuts", "9"), "cut is 9; ResNet has 3 blocks, so 1 to 3 are allowed"),
        (("nosuch",), "recipe 'nosuch' is unknown"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in refusal(halfback("audit", *arguments, "--out", tmp_path / "out"))


def test_settings_of_a_run_are_its_own(tmp_path: Path) -> None:
    run = hb.train(small.images("ho_sfl", steps=1, eval_every=1), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="a run's settings are what they are"):
        hb.audit(run.folder, progress=False, **{"model.cut": 2})
    with pytest.raises(UserError, match="minutes=0"):
        hb.audit(run.folder, minutes=0, progress=False)
