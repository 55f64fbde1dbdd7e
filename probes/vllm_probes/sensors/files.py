"""Files that appear in a folder: the dumps that a lever asked for."""

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileClosedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver

OnFile = Callable[[Path, int], None]
POLL_S = 1.0


class FolderWatch:
    """Reports each regular file of a folder once it is complete, with its size in bytes.

    Complete: its writer has closed it, or, where inotify cannot be had (128 instances a user), it has not grown
    between two polls. A file that grows later is reported again. Files that are there at the start are reported, too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._on_file: OnFile | None = None
        self._reported: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._stop_source: Callable[[], None] | None = None

    def start(self, on_file: OnFile) -> None:
        """Watch the folder, which must exist; a second start only changes who is told.

        `on_file` is called in another thread: hand over with `loop.call_soon_threadsafe`.
        """
        self._on_file = on_file
        if self._stop_source is None:
            try:
                self._stop_source = self._watch()
            except OSError:
                self._stop_source = self._poll()

    def stop(self) -> None:
        """No report comes after it. What was reported is not reported again after another start."""
        stop_source, self._stop_source = self._stop_source, None
        if stop_source is not None:
            stop_source()

    def _watch(self) -> Callable[[], None]:
        observer = InotifyObserver()
        observer.schedule(_Handler(self._report), str(self._folder))
        observer.start()
        for path in self._sizes():
            self._report(path)

        def stop() -> None:
            observer.stop()
            observer.join()

        return stop

    def _poll(self) -> Callable[[], None]:
        over = threading.Event()

        def poll() -> None:
            before: dict[Path, int] = {}
            while not over.is_set():
                sizes = self._sizes()
                for path in [path for path, size in sizes.items() if before.get(path) == size]:
                    self._report(path)
                before = sizes
                over.wait(POLL_S)

        thread = threading.Thread(target=poll, name="folder-poll", daemon=True)
        thread.start()

        def stop() -> None:
            over.set()
            thread.join()

        return stop

    def _sizes(self) -> dict[Path, int]:
        try:
            return {path: size for path in self._folder.iterdir() if (size := _size(path)) is not None}
        except OSError:
            return {}

    def _report(self, path: Path) -> None:
        with self._lock:
            size = _size(path)
            if size is None or self._reported.get(path) == size or self._on_file is None:
                return
            self._reported[path] = size
            self._on_file(path, size)


class _Handler(FileSystemEventHandler):
    def __init__(self, report: Callable[[Path], None]) -> None:
        self._report = report

    def on_any_event(self, event: FileSystemEvent) -> None:
        if isinstance(event, FileClosedEvent):
            self._report(Path(os.fsdecode(event.src_path)))
        elif isinstance(event, FileMovedEvent):
            self._report(Path(os.fsdecode(event.dest_path)))


def _size(path: Path) -> int | None:
    """None for what is no regular file (the pipe that asks for a dump) and for what has vanished."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
