"""`python -m vllm_probes.doctor TOPIC`: one look, in a process that may hang or crash; its last line is JSON."""

import importlib
import json
import os
import sys

import msgspec

if __name__ == "__main__":
    facts_out = os.dup(1)
    os.dup2(2, 1)  # a library that prints, a driver's for one, must not spoil the facts
    facts = importlib.import_module(f"vllm_probes.doctor.looks.{sys.argv[1]}").look()
    # ASCII, so that names which are no UTF-8 come through.
    os.write(facts_out, b"\n" + json.dumps(msgspec.to_builtins(facts)).encode())
