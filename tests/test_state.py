"""From observations to states: tables of real sequences, and properties."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.events import (
    ENDED_STATES,
    AttemptStarted,
    CommandEnded,
    Conclusion,
    EndpointSampled,
    Event,
    Exited,
    HostSampled,
    LogRecorded,
    PhaseChanged,
    ProcessesSampled,
    ProgressChanged,
    Stamp,
    StateChanged,
    StopRequested,
    TreeEnded,
)
from vllm_probes.judges.rules import load_rules
from vllm_probes.judges.state import PHASES, Memory, step
from vllm_probes.rows import EngineSample, ProcessRef, ProcessRow

RULES = load_rules().by_id


class Story:
    """Observations one second apart."""

    def __init__(self, *, expects_vllm: bool = True, **more: Any) -> None:
        self.events: list[Event] = []
        started = {"command": ["x"], "levers": [], "log": "attempt-1.log", "shim_pid": 2}
        self.add(AttemptStarted, **started, expects_vllm=expects_vllm, **more)

    def add(self, kind: type[Event], *, after_s: float = 1.0, **fields: Any) -> "Story":
        mono = (self.events[-1].mono if self.events else 0.0) + after_s
        self.events.append(kind(**Stamp(time=1000.0 + mono, mono=mono, node="n", attempt=1), **fields))
        return self

    def log(self, rule: str | None, **fields: Any) -> "Story":
        return self.add(LogRecorded, line_number=len(self.events), rule=rule, **fields)

    def phases(self, *rules: str) -> "Story":
        for rule in rules:
            self.log(rule)
        return self

    def server(self, health: str = "ok", *, active: bool = False, awake: bool | None = None) -> "Story":
        return self.add(EndpointSampled, url="u", health=health, active=active, engines=[EngineSample(awake=awake)])

    def processes(self, *names: str, gone: tuple[int, ...] = ()) -> "Story":
        roles = {"Worker": "worker", "Engine": "engine_core"}
        rows = [
            ProcessRow(pid=pid, parent_pid=1, started=0, process=name, role=roles.get(name[:6], "other"))  # type: ignore[arg-type]
            for pid, name in enumerate(names, 10)
        ]
        return self.add(ProcessesSampled, rows=rows, gone=list(gone))

    def end(self, code: int | None = 0, signal: int | None = None, **fields: Any) -> "Story":
        return self.add(CommandEnded, code=code, signal=signal, **fields)

    def told(self) -> list[Conclusion]:
        memory, conclusions = Memory(), []
        for event in self.events:
            memory, more = step(RULES, memory, event)
            conclusions += more
        return conclusions

    def states(self) -> list[str]:
        return [event.state for event in self.told() if isinstance(event, StateChanged)]


def ready() -> Story:
    return Story().phases("banner", "engine_ready", "serving").server()


def test_a_start_goes_through_its_states() -> None:
    story = Story().phases("banner", "config", "engine_spawn", "dist_init", "model_init", "weights", "weights_done")
    story.phases("compile", "compile_done", "kv_cache", "cudagraph", "engine_ready", "api_start", "serving")
    story.server()
    assert story.states() == ["starting", "loading", "compiling", "warming_up", "idle"]
    phases = [event.phase for event in story.told() if isinstance(event, PhaseChanged)]
    assert phases[0] == "banner"
    assert phases[-1] == "serving"


def test_a_run_that_was_attached_to_stands_where_its_server_does() -> None:
    assert Story(attached_pid=7).states() == ["starting"]
    assert Story(attached_pid=7).server(active=True).states() == ["starting", "serving"]
    assert Story(attached_pid=7, attached_serving=True).server("timeout").states() == ["idle"]
    assert Story(attached_pid=7, attached_serving=True, expects_vllm=False).states() == ["running"]


def test_an_end_that_nobody_could_see_is_no_crash() -> None:
    story = Story(attached_pid=7, attached_serving=True).server().end(None, error="It is gone.")
    assert story.states() == ["idle", "exited"]
    assert ready().end(None, error="It is gone.").states()[-1] == "crashed"


def test_application_startup_alone_is_not_idle() -> None:
    assert Story().phases("banner", "serving").states() == ["starting", "warming_up"]


def test_a_silent_server_is_idle_when_health_says_so() -> None:
    assert Story().server().states() == ["starting", "idle"]


def test_serving_and_idle_alternate_with_activity() -> None:
    assert ready().server(active=True).server(active=True).server().states()[-3:] == ["idle", "serving", "idle"]


def test_a_server_that_sleeps_is_sleeping() -> None:
    assert ready().server(awake=False).server(awake=True).states()[-3:] == ["idle", "sleeping", "idle"]


@pytest.mark.parametrize("health", ["unhealthy", "refused", "timeout", "unreachable"])
def test_a_server_that_does_not_answer_keeps_its_state(health: str) -> None:
    assert ready().server(health).states()[-1] == "idle"


def test_growing_files_of_the_hub_are_a_download_of_which_vllm_says_nothing() -> None:
    story = Story().phases("banner", "model_init")
    story.add(HostSampled, download_bytes=5)  # left by an earlier one, as long as it does not grow
    assert story.states() == ["starting", "loading"]
    story.add(HostSampled, download_bytes=5_000, download_bytes_per_s=1e3)
    story.add(HostSampled, download_bytes=9_000, download_bytes_per_s=1e3)
    assert story.states()[-1] == "downloading"
    labels = [event.label for event in story.told() if isinstance(event, PhaseChanged)]
    assert labels[-1] == "downloading the model"
    story.add(HostSampled)
    assert story.states() == ["starting", "loading", "downloading", "loading"]
    assert story.log("weights").server().states()[-1] == "idle"


def test_files_that_grow_beside_a_server_are_not_its_download() -> None:
    assert ready().add(HostSampled, download_bytes=9, download_bytes_per_s=1.0).states()[-1] == "idle"


def test_progress_is_told_once_for_each_step() -> None:
    story = Story()
    for done in ("1", "1", "2", "3"):
        story.log("weights-progress", fields={"done": done, "total": "3", "eta": "00:01"})
    progress = [event for event in story.told() if isinstance(event, ProgressChanged)]
    assert [event.done for event in progress] == [1, 2, 3]
    assert progress[0].eta == "00:01"


def test_the_order_of_kv_cache_and_compilation_on_the_cpu_does_not_matter() -> None:
    story = Story().phases("weights_done", "kv_cache", "compile", "kv_cache", "engine_ready")
    assert story.states() == ["starting", "loading", "warming_up", "compiling", "warming_up"]


def test_late_lines_of_another_engine_do_not_take_the_start_back() -> None:
    assert Story().phases("cudagraph", "config", "dist_init").states() == ["starting", "warming_up"]


def test_lines_of_a_start_change_nothing_once_it_serves() -> None:
    assert ready().phases("weights", "compile").states()[-1] == "idle"


def test_what_is_no_vllm_runs() -> None:
    assert Story(expects_vllm=False).end(0).states() == ["running", "exited"]


@pytest.mark.parametrize("sign", ["banner", "process", "server"])
def test_vllm_is_recognised_by_any_sign(sign: str) -> None:
    story = Story(expects_vllm=False)
    signs = {
        "banner": lambda: story.log("banner"),
        "process": lambda: story.processes("Worker_TP0"),
        "server": story.server,
    }
    signs[sign]()
    assert story.states()[:2] == ["running", "starting"]


def test_ranks_of_another_program_are_no_vllm() -> None:
    row = ProcessRow(pid=5, parent_pid=1, started=0, process="train.py", role="worker", rank=0)
    assert Story(expects_vllm=False).add(ProcessesSampled, rows=[row]).states() == ["running"]


def test_a_script_serves_while_its_bar_moves() -> None:
    story = Story(expects_vllm=False).phases("engine_spawn", "weights", "engine_ready")
    story.log("generation", fields={"done": "1", "total": "2"}).log("generation", fields={"done": "2", "total": "2"})
    assert story.states() == ["running", "starting", "loading", "warming_up", "serving", "idle"]


@pytest.mark.parametrize(
    ("code", "signal", "state"),
    [(0, None, "exited"), (1, None, "crashed"), (None, 9, "crashed"), (None, 15, "crashed")],
)
def test_an_end_that_nobody_asked_for(code: int | None, signal: int | None, state: str) -> None:
    story = ready().end(code, signal)
    assert story.states()[-1] == state
    assert [(event.code, event.signal) for event in story.told() if isinstance(event, Exited)] == [(code, signal)]


def test_an_end_that_was_asked_for_is_exited_whatever_its_code() -> None:
    story = ready().add(StopRequested, by="key").end(None, 9).add(TreeEnded)
    assert story.states()[-2:] == ["stopping", "exited"]
    assert isinstance(story.told()[-1], Exited)


def test_the_end_is_told_when_the_tree_is_gone_not_before() -> None:
    story = ready().add(StopRequested, by="key").end(0, leftovers=[ProcessRef(pid=3, process="EngineCore")])
    assert story.states()[-1] == "stopping"
    assert story.add(TreeEnded).states()[-1] == "exited"


def test_leftovers_of_a_crash_are_cleaned_up_without_changing_the_verdict() -> None:
    story = ready().end(None, 9, leftovers=[ProcessRef(pid=3, process="EngineCore")])
    story.add(StopRequested, by="leftovers").add(TreeEnded)
    assert story.states()[-1] == "crashed"
    assert sum(isinstance(event, Exited) for event in story.told()) == 1


def test_code_0_after_a_lost_worker_is_a_crash() -> None:
    story = ready().processes("EngineCore", "Worker_TP0", "Worker_TP1").processes(gone=(12,))
    story.log("worker-died", level="error", message="Worker proc VllmWorker-1 died").log("shutdown").end(0)
    assert story.states()[-1] == "crashed"
    exited = story.told()[-1]
    assert isinstance(exited, Exited)
    assert exited.findings[0].rule == "worker-died"


@pytest.mark.parametrize(
    ("counts", "rule", "code", "wanted"),
    [
        ((3, 3), "worker-killed", " (exit code: -9)", "worker_proc_died"),
        ((3, 4), "worker-killed", " (exit code: -9)", "host_oom_killed"),
        ((3, 4), "worker-died", " (exit code: None)", "host_oom_killed"),
        ((3, 4), "worker-died", "", "host_oom_killed"),
        ((3, 4), "worker-died", " (exit code: -15)", "worker_proc_died"),
        ((3, 4), "worker-segfault", " (exit code: -11)", "worker_proc_died"),
    ],
)
def test_a_killed_worker_was_killed_for_memory_where_the_kernel_counted_that(
    counts: tuple[int, int], rule: str, code: str, wanted: str
) -> None:
    story = ready()
    for count in counts:
        story.add(HostSampled, oom_kill_count=count)
    words = f"Worker proc VllmWorker-1 died unexpectedly{code}, shutting down executor."
    story.log(rule, level="error", message=words).end(1)
    exited = story.told()[-1]
    assert isinstance(exited, Exited)
    assert [(finding.class_, finding.role) for finding in exited.findings] == [(wanted, "cause")]


@pytest.mark.parametrize(
    ("number", "kills", "class_", "word"),
    [
        (9, 0, "host_oom_killed", "mostly the kernel, for memory"),
        (9, 2, "host_oom_killed", "killed 2 processes of this cgroup"),
        (11, 0, "worker_proc_died", "native code crashed"),
        (7, 0, "shm_size_bus_error", "/dev/shm"),
        (15, 0, "other", "told to end"),
        (50, 0, "other", "signal 50"),
    ],
)
def test_a_signal_that_ended_the_command_is_the_cause_where_the_log_has_none(
    number: int, kills: int, class_: str, word: str
) -> None:
    story = ready()
    for count in (5, 5 + kills):
        story.add(HostSampled, oom_kill_count=count)
    exited = story.end(None, number).told()[-1]
    assert isinstance(exited, Exited)
    (finding,) = exited.findings
    assert (finding.class_, finding.role, finding.severity, finding.rule) == (class_, "cause", "fatal", None)
    assert word in finding.why


def test_a_cause_in_the_log_comes_before_the_signal_and_a_consequence_after_it() -> None:
    for rule, first in (("kv-cache-none", "kv-cache-none"), ("engine-dead", None)):
        exited = ready().log(rule, level="error", message="x").end(None, 9).told()[-1]
        assert isinstance(exited, Exited)
        assert exited.findings[0].rule == first
        assert {"kv-cache-none", "engine-dead"} & {one.rule for one in exited.findings} == {rule}


@pytest.mark.parametrize(("process", "first"), [("APIServer", "oom-gpu"), ("EngineCore", "hub-repository")])
def test_an_error_after_which_its_process_went_on_is_no_cause(process: str, first: str) -> None:
    story = Story().log("hub-repository", level="error", process="APIServer")
    story.log("config", process=process).log("oom-gpu", level="error").end(1)
    (exited,) = (event for event in story.told() if isinstance(event, Exited))
    assert exited.findings[0].rule == first


def test_findings_have_the_numbers_that_the_run_told_before() -> None:
    story = ready().log("dist_init", fields={"init_method": "tcp://10.0.0.1:1"})
    story.log("gloo-connect", level="error", message="Gloo connectFullMesh failed").end(1)
    exited = story.told()[-1]
    assert isinstance(exited, Exited)
    assert exited.findings[0].fix.startswith("The ranks were told to meet at tcp://10.0.0.1:1")


def test_an_orderly_end_from_outside_is_exited() -> None:
    story = ready().processes("EngineCore", "Worker_TP0").log("shutdown").processes(gone=(10, 11)).end(0)
    assert story.states()[-2:] == ["stopping", "exited"]


def test_an_engine_that_goes_with_its_script_is_no_crash() -> None:
    story = Story(expects_vllm=False).processes("EngineCore").processes(gone=(10,)).end(0, after_s=0.5)
    assert story.states()[-1] == "exited"


def test_an_engine_that_was_gone_long_before_is_a_crash() -> None:
    story = ready().processes("EngineCore").processes(gone=(10,)).end(0, after_s=8.0)
    assert story.states()[-1] == "crashed"


def test_an_api_server_that_lives_on_without_its_engine_has_crashed() -> None:
    story = ready().processes("EngineCore").processes(gone=(10,)).log("engine-dead", level="error", message="dead")
    story.server("unhealthy").add(EndpointSampled, url="u", health="unhealthy", after_s=11.0)
    assert story.states()[-1] == "crashed"


def test_a_command_that_never_started_says_why() -> None:
    story = Story().end(127, error="vllm cannot be started: No such file or directory.")
    told = [event for event in story.told() if isinstance(event, StateChanged)]
    assert told[-1].reason == "vllm cannot be started: No such file or directory."


RULE_IDS = st.sampled_from([*RULES, None])
STEPS = st.one_of(
    st.tuples(st.just("log"), RULE_IDS),
    st.tuples(st.just("server"), st.sampled_from(["ok", "timeout", "refused"])),
    st.tuples(st.just("end"), st.sampled_from([0, 1])),
    st.tuples(st.just("stop"), st.none()),
)


@given(st.booleans(), st.lists(STEPS, max_size=30))
def test_whatever_comes_states_are_told_once_and_an_end_is_final(vllm: bool, steps: list[tuple[str, Any]]) -> None:
    story = Story(expects_vllm=vllm)
    for kind, value in steps:
        if kind == "log":
            story.log(value)
        elif kind == "server":
            story.server(value)
        elif kind == "end":
            story.end(value)
        else:
            story.add(StopRequested, by="key")
    states = story.states()
    assert all(before != after for before, after in pairwise(states))
    assert not ENDED_STATES & set(states[:-1])
    assert story.told() == story.told()


def test_every_phase_of_the_rules_is_known() -> None:
    phases = {rule.phase for rule in RULES.values() if rule.phase}
    assert phases - set(PHASES) <= {"shutdown", "generation", "server_url", "sleep", "wake"}
