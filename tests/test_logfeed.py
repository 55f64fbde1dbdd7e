"""Whose access lines the log view leaves out: our own, of every attempt, also for a view that came late."""

from pathlib import Path

from msgspec.structs import replace

from tests.ui_source import Script
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
