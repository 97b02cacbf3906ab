"""Whole runs over a gateway in which one client is a page's device (web/, under Node) and the other a native one."""

import hashlib
import os
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="the extra package is not installed")
pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

from halfback import config as configuration
from halfback.assembly import build
from halfback.config import RunConfig
from halfback.deploy.flare import FlareCarrier, seats_of
from halfback.deploy.serving import RUN, Surroundings, serve
from halfback.deploy.site import SiteConfig
from halfback.deploy.tokens import add
from halfback.engine import checkpoint
from halfback.models.packages import packaged_models
from halfback.runs.package import packaged
from halfback.runs.shares import write_shares
from halfback.testing import small
from halfback_device.data import Rows
from tests.deploy import pages
from tests.deploy.test_gateway_run import Here, Joined, one_thread  # noqa: F401

FEW: dict[str, Any] = {
    "clients": 2,
    "sampled_clients": 2,
    "steps": 6,
    "eval_every": 3,
    "checkpoint_every": 3,
    "deployment__patience": 60.0,
}


def _authorities(here: Here) -> str:
    return "".join(map(ssl.DER_cert_to_PEM_cert, here.tls.get_ca_certs(binary_form=True)))


class _Ran:
    """A run whose client 0 is a page and client 1 a native device; both have taken all its steps.

    Attributes:
        events: what the page told. theta: where its θ was when it left.
        bottom: the server's θ, by name.
    """

    def __init__(self, config: RunConfig, folder: Path, during: Callable[[pages.Page], None] | None = None) -> None:
        built, package = build(config), folder / "package"
        package.mkdir()
        packaged(built, package, None)
        owns = [folder / name for name in ("page", "native")]
        for own in owns:
            own.mkdir()
        words = [dict(zip(told[::2], told[1::2], strict=True)) for told in write_shares(built, owns)]
        here = Here(folder / "gateway", package, 2)
        authority = folder / "ca.pem"
        authority.write_text(_authorities(here))
        tokens = [add(here.tokens, 2) for _ in range(2)]
        assert here.site._gateway is not None
        url = f"wss://localhost:{here.site._gateway.port}"
        columns = {key[2:]: value for key, value in words[1].items() if key != "--data"}
        native = Joined(here, tokens[1], Rows(words[1]["--data"], **columns), folder / "native")
        kind = "arrays" if words[0]["--data"].endswith(".npz") else "table"
        rows = {"kind": kind, "path": words[0]["--data"], **columns}
        try:
            native.start()
            with pages.opened(url, tokens[0], rows, authority) as page:
                beside = threading.Thread(target=during, args=[page]) if during else None
                if beside is not None:
                    beside.start()
                serve(
                    "run",
                    configuration.to_tree(config),
                    Surroundings(
                        site=lambda: SiteConfig(trial=True),
                        folder=lambda _: folder / "server",
                        sites=lambda: seats_of({"here": here}),
                        carrier=lambda seats: FlareCarrier({"here": here}, seats),
                        job=folder / "job",
                        listen=lambda _: None,
                    ),
                )
                if beside is not None:
                    beside.join()
                self.theta, self.page = page.end(), page
        finally:
            native.ended.set()
            here.close()
        found = checkpoint.load(folder / "job" / RUN / "checkpoint")
        assert found is not None
        self.bottom = found[1]


def _assert_one_theta(ran: _Ran) -> None:
    """The page's θ has the bits of the server's, which PyTorch has moved along the same slopes."""
    theirs = {
        name.removeprefix("bottom."): hashlib.sha256(values.numpy().tobytes()).hexdigest()
        for name, values in ran.bottom.items()
        if name.startswith("bottom.")
    }
    assert ran.theta["position"] == FEW["steps"]
    assert ran.theta["digests"] == theirs


def test_a_page_and_a_native_device_train_the_quick_starts_model(tmp_path: Path) -> None:
    """Over a gateway with TLS; the tab is closed and opened again in the middle."""

    def reopens(page: pages.Page) -> None:
        page.wait("step", step=2)
        page.order("reopen")

    ran = _Ran(small.images("ho_sfl", **FEW), tmp_path, reopens)
    _assert_one_theta(ran)
    states = [event["state"] for event in ran.page.told("state")]
    assert states.count("left") >= 1
    assert states.count("preparing") >= 2
    (recipe, again) = ran.page.told("recipe")
    assert recipe == again
    assert recipe["leaves"] == ["activations", "labels", "slopes"]
    assert [event["step"] for event in ran.page.told("evaluation")] == [0, 0, 3, FEW["steps"]]


@pytest.mark.slow
def test_a_page_and_a_native_device_train_minilm(tmp_path: Path) -> None:
    """With LoRA and AdamW, on sentences of SST-2."""
    if packaged_models()["all-minilm-l6-v2"].folder() is None or "HALFBACK_DATA" not in os.environ:
        pytest.skip("needs all-minilm-l6-v2 and HALFBACK_DATA")
    lora = {"train": "lora", "optimizer": "adamw", "lr": 1e-3, "clip": 1.0}
    tree = {
        "algorithm": {"name": "ho_sfl", "directions": 2},
        "task": {"name": "sst2", "max_length": 64, "train_rows": 64, "validation_rows": 16},
        "model": {"name": "all-minilm-l6-v2", "cut": 2},
        "bottom": lora,
        "top": lora,
    }
    changes = {key.replace("__", "."): value for key, value in FEW.items()}
    ran = _Ran(configuration.from_tree(tree, {"device": "cpu", "batch_size": 8, **changes}), tmp_path)
    _assert_one_theta(ran)
    assert ran.page.told("bytes")[-1]["up"]["activations"] > 6 * 8 * 384 * 4
