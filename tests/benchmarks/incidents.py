"""How many published incidents are read rightly: class of the root cause, its line, and silence on healthy logs.

Run: python -m tests.benchmarks.incidents DIR

DIR holds `NAME.log` and `NAME.json` with `label` (a failure class, or `benign`) and `decisive_line` (null where
healthy).
"""

import json
import sys
from pathlib import Path

from vllm_probes.judges.diagnosis import diagnose
from vllm_probes.judges.rules import load_rules
from vllm_probes.log.line import clean
from vllm_probes.rows import Finding


def is_alarming(finding: Finding) -> bool:
    return finding.severity in ("error", "fatal")


def judge(label: dict[str, str | None], findings: list[Finding]) -> tuple[bool, bool | None]:
    """Whether the class is right, and whether the line is; None where the log is healthy."""
    alarming = [finding for finding in findings if is_alarming(finding)]
    if label["label"] == "benign":
        return not alarming, None
    first = alarming[0] if alarming else None
    wanted = clean((label["decisive_line"] or "").encode()).strip()
    return bool(first and first.class_ == label["label"]), bool(first and first.line.strip() == wanted)


def main(folder: Path) -> None:
    rules = load_rules()
    classes = lines = failures = total = 0
    for path in sorted(folder.glob("*.json")):
        label = json.loads(path.read_text())
        findings = diagnose(rules, path.with_suffix(".log").read_bytes().split(b"\n"), path.stem)
        class_right, line_right = judge(label, findings)
        total, classes = total + 1, classes + class_right
        failures, lines = failures + (line_right is not None), lines + bool(line_right)
        first = next(filter(is_alarming, findings), None)
        said = f"{first.class_} ({first.rule}), line {first.line_number}" if first else "nothing alarming"
        marks = f"{'class' if class_right else 'WRONG'} {'line' if line_right in (True, None) else 'MISSED'}"
        print(f"{path.stem:24} {marks:14} {label['label']:32} {said}")
        if not (class_right and line_right in (True, None)) and first:
            print(f"{'':24} {first.line[:160]}")
    print(f"class right: {classes} of {total} ({classes / total:.0%})")
    print(f"decisive line: {lines} of {failures} ({lines / failures:.0%})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
