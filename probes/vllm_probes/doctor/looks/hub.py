"""Whether the model hub answers, asked as the hub client would: with the proxies of the environment."""

import os
from collections.abc import Mapping

import httpx

from vllm_probes.doctor.facts import HubFacts
from vllm_probes.launch.redact import redact_text

ENDPOINT = "https://huggingface.co"
"""Where the hub client asks unless HF_ENDPOINT says otherwise (huggingface_hub 1.x, constants.py)."""
TIMEOUT_S = 3.0
_TRUE = frozenset(("1", "ON", "YES", "TRUE"))
MODELSCOPE = "VLLM_USE_MODELSCOPE"
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


def look() -> HubFacts:
    environ = os.environ
    url = environ.get("HF_ENDPOINT") or ENDPOINT
    shown = redact_text(url)
    if setting := offline_setting(environ):
        return HubFacts(url=shown, offline=setting)
    proxies = [name for name in PROXIES if environ.get(name)]
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=True) as client, client.stream("HEAD", url) as answer:
            return HubFacts(url=shown, status=answer.status_code, proxies=proxies)
    # A proxy or a certificate file that is no good, and a kind of proxy that needs another package, end in the others.
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        return HubFacts(url=shown, error=redact_text(str(error)) or type(error).__name__, proxies=proxies)


def offline_setting(environ: Mapping[str, str]) -> str | None:
    """The setting with which nothing is asked of this hub (huggingface_hub 1.x, constants.py; vLLM 0.32, envs.py)."""
    name = "HF_HUB_OFFLINE" if environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
    for setting, true in ((name, _TRUE), (MODELSCOPE, ("1", "TRUE"))):
        if environ.get(setting, "").strip().upper() in true:
            return f"{setting}={environ[setting]}"
    return None
