"""Where the ranks were told to meet, against what this host has."""

import pytest

from vllm_probes.events import AttemptStarted, CommandEnded, Exited, LogRecorded, Stamp
from vllm_probes.judges.frames import load_frames
from vllm_probes.judges.judging import Knowledge, Memory, judge
from vllm_probes.judges.rendezvous import facts
from vllm_probes.judges.rules import load_rules
from vllm_probes.sensors.interfaces import addresses

HOST = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.5"], "ib0": ["192.168.4.2", "fd00::2"]}


@pytest.mark.parametrize(
    ("init_method", "said"),
    [
        ("tcp://10.0.0.5:29501", "10.0.0.5 is eth0 of this host"),
        ("tcp://[fd00::2]:29501", "fd00::2 is ib0 of this host"),
        ("tcp://10.0.0.9:29501", "10.0.0.9 is no address of this host"),
        ("tcp://127.0.0.1:29501", "127.0.0.1 is this host alone"),
        ("tcp://node-1:29501", None),
        ("tcp://[fd00:29501", None),
        ("file:///tmp/vllm_dist_1", None),
        ("env://", None),
        (None, None),
    ],
)
def test_whose_address_it_is(init_method: str | None, said: str | None) -> None:
    told = facts(HOST, init_method).get("meeting_place")
    assert told.startswith(said) if told and said else told is said


@pytest.mark.parametrize(
    ("host", "told"),
    [
        (HOST, "eth0 10.0.0.5, ib0 192.168.4.2, ib0 fd00::2"),
        ({"lo": ["127.0.0.1"]}, "loopback alone"),
        (
            {f"e{at}": [f"10.0.0.{at}"] for at in range(8)},
            ", ".join(f"e{at} 10.0.0.{at}" for at in range(6)) + " and more",
        ),
    ],
)
def test_what_this_host_has(host: dict[str, list[str]], told: str) -> None:
    assert facts(host, None) == {"own_addresses": told}


def test_of_the_log_of_another_host_nothing_is_said() -> None:
    assert facts({}, "tcp://10.0.0.5:29501") == {}


def test_this_host_has_its_loopback() -> None:
    assert "127.0.0.1" in [one for ones in addresses().values() for one in ones]


def test_the_finding_says_it() -> None:
    failure = "RuntimeError: Gloo connectFullMesh failed with no error"
    events = [
        (
            AttemptStarted,
            {"command": ["x"], "levers": [], "log": "l", "shim_pid": 2, "expects_vllm": True, "addresses": HOST},
        ),
        (LogRecorded, {"line_number": 1, "rule": "dist_init", "fields": {"init_method": "tcp://10.0.0.9:1"}}),
        (LogRecorded, {"line_number": 2, "rule": "gloo-connect", "line": failure, "level": "error"}),
        (CommandEnded, {"code": 1, "signal": None}),
    ]
    knowledge, memory = Knowledge(load_rules().by_id, load_frames()), Memory()
    for at, (kind, fields) in enumerate(events):
        memory, told = judge(knowledge, memory, kind(**Stamp(time=at, mono=at, node="n", attempt=1), **fields))
    (exited,) = [one for one in told if isinstance(one, Exited)]
    assert exited.findings[0].fix.startswith(
        "The ranks were told to meet at tcp://10.0.0.9:1. 10.0.0.9 is no address of this host, which is right only "
        "where it is not the first node. This host has eth0 10.0.0.5, ib0 192.168.4.2, ib0 fd00::2. Set VLLM_HOST_IP"
    )
