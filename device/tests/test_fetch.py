"""A package that comes from a gateway: whole or not at all, and nowhere but into its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_here import FILES, PIECE, Gateway, came_to, files_of, idle, listing

from halfback_device.errors import DeviceError, PeerError
from halfback_device.fetch import Store, read_listing
from halfback_device.line import Lost


def test_what_was_cut_off_goes_on_from_there(sentences: Path, tmp_path: Path) -> None:
    gateway = Gateway(FILES, idle)
    gateway.cut_after = 2
    (cut,) = came_to(gateway, tmp_path, sentences)
    assert isinstance(cut, Lost)
    gateway.cut_after = None
    whole, again = came_to(gateway, tmp_path, sentences, times=2)
    weights = [("weights.safetensors", offset) for offset in range(0, len(FILES["weights.safetensors"]), PIECE)]
    assert gateway.pieces == [("manifest.json", 0), *weights]  # each once, and nothing of what is empty
    assert "format" in str(whole)  # it is whole, and no package; the second time it is known
    assert str(again) == str(whole)
    assert [hello["package"] for hello in gateway.met] == ["", "", gateway.listing["digest"]]
    assert files_of(tmp_path / "device" / "package" / gateway.listing["digest"]) == FILES


def test_another_digest_is_no_package_and_comes_anew(sentences: Path, tmp_path: Path) -> None:
    gateway = Gateway(FILES, idle)
    gateway.spoil = "weights.safetensors"
    (spoilt,) = came_to(gateway, tmp_path, sentences)
    assert "weights.safetensors came to another digest" in str(spoilt)
    gateway.spoil = ""
    (whole,) = came_to(gateway, tmp_path, sentences)
    assert "format" in str(whole)


def test_a_package_that_was_damaged_on_disk_comes_anew(tmp_path: Path) -> None:
    told, store = read_listing(listing(FILES)), Store(tmp_path)
    asked: list[str] = []

    def ask(name: str, offset: int) -> bytes:
        asked.append(name)
        return FILES[name][offset : offset + PIECE]

    folder = store.fetch(told, ask, lambda there: None)
    (folder / "manifest.json").write_bytes(b"[]")
    (tmp_path / "own").mkdir()
    store.fetch(told, ask, lambda there: None)
    assert files_of(folder) == FILES
    other = {"manifest.json": b"1"}
    newer = store.fetch(read_listing(listing(other)), lambda name, offset: other[name], lambda there: None)
    assert set(tmp_path.iterdir()) == {newer, tmp_path / "own"}  # one package at a time, and nothing but packages


def test_links_are_not_written_through(tmp_path: Path) -> None:
    told = read_listing(listing({"weights": b"theirs"}))
    (tmp_path / "victim").write_bytes(b"")
    unfinished = tmp_path / "store" / f"{told.digest}.part"
    unfinished.mkdir(parents=True)
    (unfinished / "weights.part").symlink_to(tmp_path / "victim")
    with pytest.raises(DeviceError, match="can't be kept"):
        Store(tmp_path / "store").fetch(told, lambda name, offset: b"theirs", lambda there: None)
    assert (tmp_path / "victim").read_bytes() == b""


def _of_file(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda told: told["files"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_of_file(name="../manifest.json"), "name"),
        (_of_file(name="/etc/passwd"), "name"),
        (_of_file(name=".."), "name"),
        (_of_file(name="a\0b"), "name"),
        (_of_file(name="weights.safetensors.part"), "name"),
        (_of_file(name="WEIGHTS.safetensors"), "one name"),
        (_of_file(name=3), "name"),
        (_of_file(bytes=-1), "bytes"),
        (_of_file(bytes=True), "bytes"),
        (_of_file(bytes=1 << 37), "bytes"),
        (_of_file(bytes=1 << 36), "68722622467 bytes"),
        (_of_file(sha256="0" * 63), "sha256"),
        (_of_file(sha256="0" * 64), "digest"),
        (_of_file(mode=0o777), "due"),
        (lambda told: told.update(digest="0" * 64), "digest"),
        (lambda told: told.update(digest=None), "digest"),
        (lambda told: told.update(files=[]), "files"),
        (lambda told: told.update(files=told["files"] * 2000), "files"),
        (lambda told: told.pop("files"), "due"),
    ],
)
def test_a_listing_is_not_trusted(change: Callable[[dict[str, Any]], None], said: str) -> None:
    told = listing(FILES)
    change(told)
    with pytest.raises(PeerError, match=said):
        read_listing(told)
