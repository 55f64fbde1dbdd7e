"""Addresses and interfaces that the environment names, and the model hub."""

import ipaddress
from collections.abc import Mapping, Sequence

from vllm_probes.doctor.check import Check, note, ok, problem, warning
from vllm_probes.doctor.facts import HubFacts, Interface, InterfaceFacts, MasterFacts


def judge_host_ip(interfaces: InterfaceFacts, environ: Mapping[str, str]) -> Check:
    """VLLM_HOST_IP: the address that vLLM gives its other processes (vLLM 0.32, `get_ip` in utils/network_utils.py)."""
    check_id, value = "host-ip", environ.get("VLLM_HOST_IP", "")
    if not value:
        return ok(check_id, "It is not set: vLLM takes the address of the default route.")
    owner = _owner(value, interfaces.interfaces)
    if owner is not None:
        return ok(check_id, f"{value} is an address of {owner}.")
    what = f"It is {value!r}, which no interface of this host has ({_all_addresses(interfaces)})."
    means = "Workers and nodes wait for an address that nobody answers at, and time out."
    return problem(check_id, what, means, _host_ip_fix(interfaces))


def judge_nccl_interface(interfaces: InterfaceFacts, environ: Mapping[str, str]) -> Check:
    """NCCL_SOCKET_IFNAME; NCCL ignores it when it has no more than one character (`ncclFindInterfaces`, socket.cc)."""
    check_id, value = "nccl-interface", environ.get("NCCL_SOCKET_IFNAME", "")
    if len(value) < 2:
        return ok(check_id, "It is not set: NCCL chooses by itself.")
    if found := nccl_matches(value, interfaces.interfaces):
        return ok(check_id, f"{value!r} fits {', '.join(found)}.")
    what = f"It is {value!r}, which fits no interface that runs and has an address ({_all_addresses(interfaces)})."
    means = "NCCL stops with `no socket interface found`."
    return problem(check_id, what, means, "unset NCCL_SOCKET_IFNAME")


def nccl_matches(value: str, interfaces: Sequence[Interface]) -> list[str]:
    """The interfaces that NCCL would take: prefixes by commas, each with an optional `:port`; `=` names them exactly,
    `^` excludes (NCCL user guide, NCCL_SOCKET_IFNAME; `ncclOsFindInterfaces`)."""
    excludes = value.startswith("^")
    exact = value.removeprefix("^").startswith("=")
    words = [word.partition(":")[0] for word in value.removeprefix("^").removeprefix("=").split(",")]
    words = [word for word in words if word]

    def fits(name: str) -> bool:
        return not words or any(name == word if exact else name.startswith(word) for word in words)

    usable = [one.name for one in interfaces if one.is_running and any(address != "::1" for address in one.addresses)]
    return [name for name in usable if fits(name) != excludes]


def judge_gloo_interface(interfaces: InterfaceFacts, environ: Mapping[str, str]) -> Check:
    """GLOO_SOCKET_IFNAME: names by commas, each of which must be there (torch, ProcessGroupGloo)."""
    check_id, value = "gloo-interface", environ.get("GLOO_SOCKET_IFNAME", "")
    if not value:
        return ok(check_id, "It is not set: Gloo takes the address that this host's name stands for.")
    known = {one.name for one in interfaces.interfaces if one.addresses}
    if missing := [name for name in value.split(",") if name not in known]:
        what = f"It is {value!r}; no interface {missing[0]!r} has an address ({_all_addresses(interfaces)})."
        means = "Ranks cannot connect: Gloo stops with `Unable to find address for`."
        return problem(check_id, what, means, "unset GLOO_SOCKET_IFNAME")
    return ok(check_id, f"{value!r} is there.")


def judge_master_address(master: MasterFacts, interfaces: InterfaceFacts | None) -> Check:
    """MASTER_ADDR: where torch looks for the first rank (torch.distributed, `env://`)."""
    check_id = "master-address"
    if master.name is None:
        return ok(check_id, "It is not set.")
    if master.error is not None:
        what = f"It is {master.name!r}, which does not resolve: {master.error}."
        means = "No rank finds the first one; a run that uses it waits until it times out."
        return problem(check_id, what, means, "unset MASTER_ADDR")
    addresses = ", ".join(master.addresses)
    owners = [_owner(address, interfaces.interfaces) for address in master.addresses] if interfaces else []
    if any(owners):
        return ok(check_id, f"{master.name} is this host ({addresses}).")
    means = "A run on this host alone waits for that one; of several nodes it must be the first."
    return note(check_id, f"{master.name} is another host ({addresses}).", means, "unset MASTER_ADDR")


def judge_hub(hub: HubFacts) -> Check:
    """Whether models can be downloaded here. What is on a disk of this host works without."""
    if hub.offline:
        name = hub.offline.partition("=")[0]
        means = "Only models that are on this host already can be served."
        if name == "VLLM_USE_MODELSCOPE":
            means = "Models come from ModelScope, which is not asked here."
        return note("hub", f"{hub.offline}: the hub at {hub.url} is not asked.", means, f"unset {name}")
    if hub.status is not None and hub.status < 500 and hub.status != 407:  # 407: a proxy wants a password
        return ok("hub", f"{hub.url} answers (HTTP {hub.status}).")
    said = f"answers with HTTP {hub.status}" if hub.status is not None else f"cannot be reached: {hub.error}"
    what = f"{hub.url} {said.rstrip('.')}; proxy variables that are set: {', '.join(hub.proxies) or 'none'}."
    fix = (
        "Set HTTPS_PROXY (or HF_ENDPOINT to a mirror); or get the model on a host that reaches the hub with "
        "`hf download MODEL --local-dir FOLDER`, copy it, serve FOLDER, and `export HF_HUB_OFFLINE=1`."
    )
    return warning("hub", what, "Models cannot be downloaded here; those on this host work.", fix)


def _owner(address: str, interfaces: Sequence[Interface]) -> str | None:
    """The interface that has this address; the loopback has all of 127.0.0.0/8."""
    try:
        wanted = ipaddress.ip_address(address)
    except ValueError:
        return None
    for one in interfaces:
        if any(ipaddress.ip_address(own) == wanted for own in one.addresses):
            return one.name
    return "the loopback" if wanted.is_loopback and wanted.version == 4 else None


def _all_addresses(interfaces: InterfaceFacts) -> str:
    return "; ".join(f"{one.name}: {', '.join(one.addresses)}" for one in interfaces.interfaces if one.addresses)


def _host_ip_fix(interfaces: InterfaceFacts) -> str:
    """With the first address that other hosts could reach."""
    addresses = [ipaddress.ip_address(address) for one in interfaces.interfaces for address in one.addresses]
    outer = next((one for one in addresses if not one.is_loopback and not one.is_link_local), None)
    return f"`unset VLLM_HOST_IP` or `export VLLM_HOST_IP={outer}`" if outer else "unset VLLM_HOST_IP"
