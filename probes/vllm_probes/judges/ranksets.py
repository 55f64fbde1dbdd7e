"""Many ranks in few words: `TP0-2,4-7`, `DP0-1_PP0_TP0-3`, `EngineCore TP1 pid4031`."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import product

_PARTS = re.compile(r"_(DP\d+|PP\d+|PCP\d+|TP\d+)")
_NUMBER = re.compile(r"(0|[1-9][0-9]*)")
_RANGES = re.compile(r"([0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*)")
_PLAIN = re.compile(r"[A-Za-z_.-]*(?:(?:0|[1-9][0-9]*)(?:[A-Za-z_.][A-Za-z_.-]*|-[A-Za-z_.][A-Za-z_.-]*|\Z))*")
_Place = tuple[tuple[int, ...], ...]
"""For each number of a name the values that it takes."""
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')


def labels(names: Mapping[int, str]) -> dict[int, str]:
    """A short name that no two have, for processes by pid.

    A worker with a rank in its title goes by it (`Worker_DP1_TP3_EP7`: `DP1_TP3`; the ranks of expert and of decode
    context parallelism follow from the others), one with a name of its own by that, the rest by pid.
    """
    short = {pid: "_".join(_PARTS.findall(name)) if name.startswith("Worker_") else "" for pid, name in names.items()}
    wanted = {pid: short[pid] or name for pid, name in names.items()}
    count = Counter(wanted.values())
    return {pid: name if count[name] == 1 else f"pid{pid}" for pid, name in wanted.items()}


def natural(name: str) -> tuple[list[str], list[int]]:
    """A key that sorts `TP10` after `TP9`: the texts between the numbers, then the numbers."""
    parts = _NUMBER.split(name)
    return parts[::2], [int(number) for number in parts[1::2]]


def render(members: Collection[str]) -> str:
    """The members in the order of their names and numbers; `parse` gives them back.

    Names that are alike but for their numbers are drawn together as far as they make a grid. One that could be misread
    stands in quotes.
    """
    alike: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    odd = sorted(member for member in members if not _is_plain(member))
    for member in members:
        if _is_plain(member):
            texts, numbers = natural(member)
            alike.setdefault(tuple(texts), []).append(tuple(numbers))
    words = [word for texts in sorted(alike) for word in _words(texts, alike[texts])]
    return " ".join([*words, *map(json.dumps, odd)])


def parse(text: str) -> frozenset[str]:
    """The members that `render` has drawn."""
    return frozenset(member for word in _WORD.findall(text) for member in _members(word))


def _is_plain(member: str) -> bool:
    return bool(member) and _PLAIN.fullmatch(member) is not None


def _words(texts: tuple[str, ...], places: Iterable[tuple[int, ...]]) -> list[str]:
    """Each a product of ranges: places that differ in one number only are drawn together, the last number first."""
    grid: set[_Place] = {tuple((number,) for number in place) for place in places}
    for position in reversed(range(len(texts) - 1)):
        rows: dict[_Place, list[int]] = {}
        for place in grid:
            rows.setdefault((*place[:position], *place[position + 1 :]), []).extend(place[position])
        grid = {(*rest[:position], tuple(sorted(found)), *rest[position:]) for rest, found in rows.items()}
    return [_word(texts, place) for place in sorted(grid)]


def _word(texts: tuple[str, ...], place: _Place) -> str:
    return texts[0] + "".join(_ranges(numbers) + text for numbers, text in zip(place, texts[1:], strict=True))


def _ranges(numbers: tuple[int, ...]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _members(word: str) -> list[str]:
    if word.startswith('"'):
        return [json.loads(word)]
    parts = _RANGES.split(word)
    choices = [_numbers(part) if at % 2 else [part] for at, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def _numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for one in ranges.split(","):
        first, _, last = one.partition("-")
        numbers += map(str, range(int(first), int(last or first) + 1))
    return numbers
