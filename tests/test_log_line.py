"""Lines of every writer, taken apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_probes.log.line import ParsedLine, clean, parse_line, rank_of

CLEANED = [
    (b"plain", "plain"),
    (b"ends\r\n", "ends"),
    (b"\r 50%|#\r100%|##\n", "100%|##"),
    (b"\x1b[0;36m(A pid=1)\x1b[0;0m \x1b[32mINFO\x1b[0m x", "(A pid=1) INFO x"),
    (b"\x1b]0;title\x07text\x1b[2K\x1b(B", "text"),
    (b"a\tb", "a       b"),
    (b"bell\x07 nul\x00 del\x7f", "bell␇ nul␀ del␡"),
    (b"bad \xff utf-8", "bad \ufffd utf-8"),
    ("\u202ereversed\u2028 \x9b31m".encode(), "\ufffdreversed\ufffd \ufffd31m"),
    ("▄▄ ▀▄▀ █".encode(), "▄▄ ▀▄▀ █"),
    (b"\x1b[31", "␛[31"),
]


@pytest.mark.parametrize(("raw", "text"), CLEANED)
def test_clean(raw: bytes, text: str) -> None:
    assert clean(raw) == text


@given(st.binary(max_size=80))
def test_nothing_that_is_left_controls_a_terminal(raw: bytes) -> None:
    text = clean(raw)
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in text)
    assert clean(text.encode()) == text


# line, shape, process, pid, rank, level, file, source line, message
LINES = [
    (
        "(EngineCore pid=4013) INFO 11-21 08:53:11 [core.py:133] Initializing",
        ("vllm", "EngineCore", 4013, None, "info", "core.py", 133, "Initializing"),
    ),
    (
        "(Worker_TP3 pid=7) DEBUG 11-21 09:21:29 [model_executor/.../utils/fp8_utils.py:1] x",
        ("vllm", "Worker_TP3", 7, 3, "debug", "model_executor/.../utils/fp8_utils.py", 1, "x"),
    ),
    (
        "INFO 02-03 13:14:04 llm_engine.py:706] Avg prompt throughput: 0.0 tokens/s",
        ("vllm", None, None, None, "info", "llm_engine.py", 706, "Avg prompt throughput: 0.0 tokens/s"),
    ),
    (
        "(VllmWorkerProcess pid=1078911) ERROR 06-17 15:30:30 multiproc_worker_utils.py:226]     return x",
        ("vllm", "VllmWorkerProcess", 1078911, None, "error", "multiproc_worker_utils.py", 226, "    return x"),
    ),
    (
        "(VllmWorker rank=7 pid=410) INFO 07-23 19:34:48 [shm_broadcast.py:289] handle",
        ("vllm", "VllmWorker", 410, 7, "info", "shm_broadcast.py", 289, "handle"),
    ),
    (
        "(APIServer pid=716) (EngineCore_DP0 pid=1101) ERROR 01-29 10:27:47 [core.py:710]     raise TimeoutError",
        ("vllm", "EngineCore_DP0", 1101, None, "error", "core.py", 710, "    raise TimeoutError"),
    ),
    (
        "2025-05-16T13:12:16.645427617Z WARNING 05-16 13:12:16 [core_client.py:425] docker",
        ("vllm", None, None, None, "warning", "core_client.py", 425, "docker"),
    ),
    (
        "6:Aug 24 01:02:00 host serve.sh[959359]: (EngineCore pid=959359) ERROR 08-24 01:02:00 [core.py:1349] x",
        ("vllm", "EngineCore", 959359, None, "error", "core.py", 1349, "x"),
    ),
    (
        "[my prefix (1)] (VllmWorker-2 pid=9) CRITICAL 05-06 08:55:19 [a.py:1] VLLM_LOGGING_PREFIX",
        ("vllm", "VllmWorker-2", 9, 2, "critical", "a.py", 1, "VLLM_LOGGING_PREFIX"),
    ),
    (
        "(RayWorkerProc pid=1978, ip=10.41.0.8) INFO 05-06 08:55:19 [a.py:1] hi",
        ("vllm", "RayWorkerProc", 1978, None, "info", "a.py", 1, "hi"),
    ),
    ("INFO [serve.py:201] Launching", ("vllm", None, None, None, "info", "serve.py", 201, "Launching")),
    ("ERROR ... [core.py:1197] x", ("vllm", None, None, None, "error", "core.py", 1197, "x")),
    (
        '{"asctime": "11-21", "levelname": "ERROR", "name": "vllm", "processName": "VllmWorker-1", "process": 12, '
        '"message": "it broke", "exc_info": "ValueError: x"}',
        ("json", "VllmWorker-1", 12, 1, "error", None, None, "it broke\nValueError: x"),
    ),
    (
        "INFO:     Application startup complete.",
        ("uvicorn", None, None, None, "info", None, None, "Application startup complete."),
    ),
    (
        '(APIServer pid=1) INFO:     127.0.0.1:35534 - "GET /health HTTP/1.1" 200 OK',
        ("access", "APIServer", 1, None, "info", None, None, '127.0.0.1:35534 - "GET /health HTTP/1.1" 200 OK'),
    ),
    ("WARNING:root:careful", ("logging", None, None, None, "warning", "root", None, "careful")),
    (
        "Loading safetensors checkpoint shards:  56% Completed | 5/9 [00:13<00:11,  2.87s/it]",
        ("tqdm", None, None, None, None, None, None, None),
    ),
    (
        "(EngineCore_DP0 pid=3) Capturing CUDA graphs (FULL):  12%|█▎ | 4/35 [00:01<00:08,  3.5it/s]",
        (
            "tqdm",
            "EngineCore_DP0",
            3,
            None,
            None,
            None,
            None,
            "Capturing CUDA graphs (FULL):  12%|█▎ | 4/35 [00:01<00:08,  3.5it/s]",
        ),
    ),
    (
        "[W1121 08:53:17.149477575 utils.cpp:68] Warning: NUMA binding",
        ("torch", None, None, None, "warning", "utils.cpp", 68, "Warning: NUMA binding"),
    ),
    (
        "[rank0]:[E321 02:07:08.408271257 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog",
        ("torch", None, None, 0, "error", "ProcessGroupNCCL.cpp", 607, "[Rank 0] Watchdog"),
    ),
    ("[E ProcessGroupNCCL.cpp:475] x", ("torch", None, None, None, "error", "ProcessGroupNCCL.cpp", 475, "x")),
    (
        "[rank1]:W0306 00:02:25.387000 473 torch/distributed/run.py:793] x",
        ("torch", None, 473, 1, "warning", "torch/distributed/run.py", 793, "x"),
    ),
    (
        "gpu2:2144:2556 [2] include/shm.h:28 NCCL WARN Call to posix_fallocate failed",
        ("nccl", None, 2144, None, "warning", "include/shm.h", 28, "NCCL WARN Call to posix_fallocate failed"),
    ),
    (
        "[2026-05-05 06:16:47] node-01:18:19 [3] NCCL INFO Using network Socket",
        ("nccl", None, 18, None, "info", None, None, "NCCL INFO Using network Socket"),
    ),
    (
        "[00:40:46.606413] coredump: SM 123/132 has finished",
        ("coredump", None, None, None, None, None, None, "coredump: SM 123/132 has finished"),
    ),
    (
        "========= Invalid __global__ read of size 4 bytes",
        ("sanitizer", None, None, None, None, None, None, "Invalid __global__ read of size 4 bytes"),
    ),
    (
        "(APIServer pid=1)     sys.exit(main())",
        ("prefixed", "APIServer", 1, None, None, None, None, "    sys.exit(main())"),
    ),
    ("[rank5]:   File", ("prefixed", None, None, 5, None, None, None, "  File")),
    ("(EngineCore_DP0 pid=XXXXX) x", ("prefixed", "EngineCore_DP0", None, None, None, None, None, "x")),
    (
        "[0;36m(EngineCore_DP0 pid=9)[0;0m ValueError: no",
        ("prefixed", "EngineCore_DP0", 9, None, None, None, None, "ValueError: no"),
    ),
    (
        "[2026-05-05T06:16:47Z] RuntimeError: no",
        ("plain", None, None, None, None, None, None, "RuntimeError: no"),
    ),
    (
        "(RayWorkerWrapper pid=7, ip=10.0.0.2) Fatal Python error: Bus error",
        ("prefixed", "RayWorkerWrapper", 7, None, None, None, None, "Fatal Python error: Bus error"),
    ),
    *(
        (prefix + "(Worker_TP1 pid=7)   File", ("prefixed", "Worker_TP1", 7, 1, None, None, None, "  File"))
        for prefix in (
            "^C",
            "0: ",
            " 3: ",
            "[1,0]<stderr>:",
            "[default3]:",
            "vllm.2.x1@node-7    | ",
            "[pod/vllm-0/server] ",
            "vllm-7c9d-x2 server ",
            "2025-09-14T12:11:19+0200 gpu7 vllm[2210]: ",
            "Sep 14 12:11:19.123456 gpu7 vllm[2210]: ",
            "Sun 2025-09-14 12:11:19 CEST gpu7 vllm[2210]: ",
            "[ 1234.567890] gpu7 vllm[2210]: ",
        )
    ),
    ("    0: 'a',", ("plain", None, None, None, None, None, None, "    0: 'a',")),
    ("single-node run failed", ("plain", None, None, None, None, None, None, "single-node run failed")),
    ("vllm-1  | Killed", ("plain", None, None, None, None, None, None, "Killed")),
    ("x = f(pid=3) INFO", ("plain", None, None, None, None, None, None, "x = f(pid=3) INFO")),
    ("", ("plain", None, None, None, None, None, None, "")),
]


@pytest.mark.parametrize(("text", "expected"), LINES)
def test_parse_line(text: str, expected: tuple[object, ...]) -> None:
    line = parse_line(text)
    found = (line.shape, line.process, line.pid, line.rank, line.level, line.file, line.line, line.message)
    assert found == (*expected[:-1], text if expected[-1] is None else expected[-1])


@given(st.text(max_size=200))
def test_every_text_can_be_taken_apart(text: str) -> None:
    assert parse_line(text).message in text or text.startswith("{")


@pytest.mark.parametrize("text", [" " * 65536, "a" * 65536, "(" * 65536, ": " * 32768, "x |" * 20000, "\\" * 65536])
def test_a_long_hostile_line_comes_back_whole(text: str) -> None:
    """An exponential pattern would not come back at all."""
    assert parse_line(text) == ParsedLine(shape="plain", message=text)


@pytest.mark.parametrize(
    ("process", "rank"),
    [
        ("Worker_TP3", 3),
        ("Worker_PP1", 1),
        ("Worker_DP1_TP0_EP2", 2),
        ("Worker_DP1_TP0", None),
        ("Worker_PP1_TP3", None),
        ("VllmWorker-5", 5),
        ("Worker", None),
        ("EngineCore_DP1", None),
    ],
)
def test_the_rank_is_the_global_one_or_none(process: str, rank: int | None) -> None:
    assert rank_of(process) == rank
