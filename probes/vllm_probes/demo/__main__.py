"""`python -m vllm_probes.demo serve MODEL …`."""

from vllm_probes.demo.vllm.entrypoints.serve import main

main()
