"""`vllm-tui probe`: one request for one token, for people and for programs."""

import asyncio

import msgspec

from vllm_probes import commands
from vllm_probes.events import ProbeFinished
from vllm_probes.judges.address import Address, address_from_command
from vllm_probes.judges.probing import api_key, meaning, served
from vllm_probes.keeper.client import Client, connect
from vllm_probes.keeper.folder import KeeperError, SessionFolder
from vllm_probes.rows import Light
from vllm_probes.sensors import ports, probe, processes, tree
from vllm_tui.format import printable

MARGIN_S = 5.0
"""What the keeper may take beside the probe itself."""


class NotProbedError(Exception):
    """Nobody could be asked; the text says why."""


async def of_session(folder: SessionFolder) -> list[Light]:
    """Have the keeper of a session ask its server.

    Raises:
        NotProbedError: nothing runs that could be asked.
        KeeperError: the keeper cannot be started or does not answer.
    """
    client = await connect(folder)
    finished: asyncio.Future[list[Light]] = asyncio.get_running_loop().create_future()
    reading = asyncio.ensure_future(_read(client, finished))
    try:
        answer = await client.ask(commands.Probe(id=client.next_id()))
        if not answer.ok:
            raise NotProbedError(answer.message)
        async with asyncio.timeout(probe.DEADLINE_S + MARGIN_S):
            return await finished
    except TimeoutError:
        raise KeeperError(f"The keeper of this session did not answer: see {folder.keeper_log}.") from None
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await client.close()


async def _read(client: Client, finished: "asyncio.Future[list[Light]]") -> None:
    async for batch in client.batches():
        for event in batch:
            if isinstance(event, ProbeFinished) and not finished.done():
                finished.set_result(event.lights)


async def of_port(port: int) -> list[Light]:
    """Ask whoever listens on a port of this host; its key is taken from it where it is a process of this user."""
    pid = ports.listener(port)
    argv, env = (tree.command_line(pid), processes.environ(pid)) if pid else ([], {})
    address = address_from_command(argv, env)
    if address is None or address.port != port or address.uds is not None:
        address = Address(port=port)
    return await probe.send(address, api_key(argv, env), set())


def as_json(lights: list[Light]) -> str:
    """One object: `served`, `summary` and the three `lights`."""
    told = {"served": served(lights), "summary": meaning(lights), "lights": lights}
    return msgspec.json.encode(told).decode()


def as_text(lights: list[Light]) -> str:
    """One line for each light, then what they say together."""
    return "\n".join([*map(_line, lights), printable(meaning(lights))])


def _line(light: Light) -> str:
    took = "" if light.latency_s is None else f"{light.latency_s:.3f} s"
    return f"{light.name:<8} {light.outcome:<8} {took:>8}  {printable(light.said)}".rstrip()
