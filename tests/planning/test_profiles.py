"""Fleet files: what is read of them, what is refused, and who is drawn."""

from collections import Counter
from pathlib import Path

import pytest

from halfback.errors import UserError
from halfback.planning.profiles import DeviceClass, Fleet, draw, fleets, read_fleet

CLASS = (
    "{name: phone, memory_megabytes: 200, operations_per_second: 1e10, up_megabits: 10, down_megabits: 50, "
    "source: ours}"
)
GOOD = f"classes: [{CLASS}]\nserver_operations_per_second: 1e12\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(text)
    return path


def test_a_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    fleet = read_fleet(written(tmp_path, GOOD))
    (phone,) = fleet.classes
    assert (phone.name, phone.memory_megabytes, phone.share, phone.latency_seconds) == ("phone", 200, 1, 0)
    assert phone.backward_operations_per_second is fleet.uplink_megabits is fleet.downlink_megabits is None


def test_json_is_read_too(tmp_path: Path) -> None:
    fleet = read_fleet(written(tmp_path, GOOD))
    (tmp_path / "fleet.json").write_text(fleet.model_dump_json())
    assert read_fleet(tmp_path / "fleet.json") == fleet


def test_shipped_fleets_say_where_each_figure_is_from() -> None:
    assert set(fleets()) >= {"phones", "cell", "home"}
    for name in fleets():
        fleet = read_fleet(name)
        assert "http" in fleet.source
        assert all(each.source for each in fleet.classes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "must be a mapping"),
        ("", "must be a mapping"),
        ("classes: []\nserver_operations_per_second: 1", "classes=[]: "),
        ("classes: {a: 1}\nserver_operations_per_second: 1", "classes={'a': 1}: "),
        ("classes: [1]\nserver_operations_per_second: 1", "classes.0=1: "),
        (f"classes: [{CLASS}]", "server_operations_per_second is missing"),
        (GOOD.replace("source: ours", "sauce: ours"), "classes.0.source is missing"),
        (GOOD + "uplink_megabit: 3", "uplink_megabit is unknown; did you mean uplink_megabits"),
        (GOOD.replace("source: ours", "source: ours, latency: 1"), "classes.0.latency is unknown; did you mean"),
        (GOOD.replace("200", "-1"), "classes.0.memory_megabytes=-1: "),
        (GOOD.replace("200", "0"), "classes.0.memory_megabytes=0: "),
        (GOOD.replace("200", ".nan"), "classes.0.memory_megabytes=nan: "),
        (GOOD.replace("200", ".inf"), "classes.0.memory_megabytes=inf: "),
        (GOOD.replace("200", "1e400"), "out of range"),
        (GOOD.replace("200", "true"), "classes.0.memory_megabytes="),
        (GOOD.replace("200", "'200 MB'"), "classes.0.memory_megabytes='200 MB': "),
        (GOOD.replace("source: ours", "share: 0, source: ours"), "classes.0.share=0: "),
        (GOOD.replace("phone", "'a\\nb'"), "classes.0.name="),
        (GOOD.replace("phone", '"\\e[31m"'), "classes.0.name="),
        (f"classes: [{CLASS}, {CLASS}]\nserver_operations_per_second: 1", "two classes are called 'phone'"),
        (GOOD + "source: !!python/object:os.system {}", "line 3"),
        ("a: &a [*a]", "refers to what it stands in"),
        ("x: " + "[" * 60, "nested deeper"),
        ("classes: [", "is no YAML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_fleet(written(tmp_path, text))
    assert said in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for fleet, said in (("phons", "did you mean phones"), (tmp_path, "is not a file"), (tmp_path / "x.yaml", "read")):
        with pytest.raises(UserError, match=said):
            read_fleet(fleet)


def fleet_of(*shares: float) -> Fleet:
    (phone,) = Fleet.model_validate(
        {
            "classes": [
                {"name": "a", "memory_megabytes": 1, "operations_per_second": 1, "up_megabits": 1, "down_megabits": 1}
                | {"source": "ours"}
            ],
            "server_operations_per_second": 1,
        }
    ).classes
    classes = [phone.model_copy(update={"name": str(n), "share": share}) for n, share in enumerate(shares)]
    return Fleet(classes=tuple(classes), server_operations_per_second=1)


@pytest.mark.parametrize(
    ("shares", "clients", "counts"),
    [
        ((1, 1), 10, {"0": 5, "1": 5}),
        ((3, 1), 4, {"0": 3, "1": 1}),
        ((0.5, 0.3, 0.2), 7, {"0": 4, "1": 2, "2": 1}),  # 3.5, 2.1 and 1.4: the largest remainder is the first's
        ((1, 1, 1), 4, {"0": 2, "1": 1, "2": 1}),  # all alike: the earlier class first
        ((1, 1e-6), 3, {"0": 3}),
        ((1, 1), 1, {"0": 1}),
    ],
)
def test_shares_are_honoured(shares: tuple[float, ...], clients: int, counts: dict[str, int]) -> None:
    drawn = draw(fleet_of(*shares), clients, seed=3)
    assert len(drawn) == clients
    assert Counter(each.name for each in drawn) == counts


def test_a_draw_is_a_function_of_the_seed() -> None:
    fleet = fleet_of(1, 1, 2)
    names = [[each.name for each in draw(fleet, 100, seed)] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert isinstance(draw(fleet, 1, 0)[0], DeviceClass)
