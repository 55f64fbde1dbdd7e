"""What the screen takes from the model of a log: whose lines to leave out, and in a replay where it ends."""

from pathlib import Path

from msgspec.structs import replace

from tests.ui_source import Script
from vllm_probes.events import LogRecorded
from vllm_probes.model import SessionModel, restore, snapshot
from vllm_tui.logfeed import LogFeed


def access(client: str) -> str:
    return f'INFO:     {client} - "GET /health HTTP/1.1" 200 OK\n'


def two_attempts(folder: Path) -> SessionModel:
    """Each with three looks at the server, every one over a connection of its own, and one look of somebody else."""
    model = SessionModel()
    for number in (1, 2):
        script = Script(number)
        model.apply(script.attempt_started())
        ours = [f"127.0.0.1:{number}000{look}" for look in range(3)]
        for at, client in enumerate(ours):
            model.apply(replace(script.endpoint(at=at), own_clients=[client]))
        (folder / f"attempt-{number}.log").write_text("".join(map(access, [*ours, "127.0.0.1:7"])))
    return model


def shown(feed: LogFeed) -> list[str]:
    assert feed.rows is not None
    return [line.text for line in feed.rows.read(0, feed.rows.line_count)]


def test_our_access_lines_are_none_of_the_users(tmp_path: Path) -> None:
    model = two_attempts(tmp_path)
    feed = LogFeed(tmp_path)
    for number in (2, 1):
        feed.open(number, f"attempt-{number}.log")
        feed.learn(model, live=True)
        feed.refresh()
        assert shown(feed) == [access("127.0.0.1:7").rstrip("\n")]
    feed.close()


def test_a_view_that_came_late_knows_them_too(tmp_path: Path) -> None:
    script = Script(2)
    sent = replace(script.restored(), model=snapshot(two_attempts(tmp_path)))
    feed = LogFeed(tmp_path)
    feed.open(2, "attempt-2.log")
    feed.refresh()
    assert len(shown(feed)) == 4
    feed.learn(restore(sent), live=True)
    feed.refresh()
    assert shown(feed) == [access("127.0.0.1:7").rstrip("\n")]
    feed.close()


def test_a_replay_shows_every_line_that_the_session_speaks_of(tmp_path: Path) -> None:
    (tmp_path / "attempt-1.log").write_text("".join(f"line {number}\n" for number in range(1, 10)))
    script, model, feed = Script(), SessionModel(), LogFeed(tmp_path)
    model.apply(script.attempt_started())
    feed.open(1, "attempt-1.log")
    alarm = LogRecorded(**script.stamp(3), line_number=4, exception_line_number=6, level="error")
    for event, count in (
        (None, 0),
        (script.log_sampled(14, 1), 2),
        (replace(script.phase("weights", 2), line_number=3), 3),
        (alarm, 6),
        (script.log_sampled(14, 4), 6),
        (script.log_sampled(56, 5), 8),
        (script.command_ended(6), 8),
        (script.tree_ended(7), 9),
    ):
        if event:
            model.apply(event)
        feed.learn(model, live=False)
        feed.refresh()
        assert len(shown(feed)) == count, event
    assert feed.index is not None
    assert feed.index.generation == 0
    feed.close()


def test_writers_are_found_when_asked_for_and_followed_from_then_on(tmp_path: Path) -> None:
    log = tmp_path / "attempt-1.log"
    log.write_text("(APIServer pid=1) x\n")
    feed = LogFeed(tmp_path)
    assert feed.find_writers() is False
    feed.open(1, log.name)
    feed.refresh()
    assert feed.names == {}
    assert feed.find_writers() is False
    assert feed.names == {1: "APIServer"}
    with log.open("a") as file:
        file.write("(EngineCore pid=2) x\n")
    feed.refresh()
    assert feed.names == {1: "APIServer", 2: "EngineCore"}
    feed.close()
