"""`python …/vllm serve MODEL …`: Python runs a folder, and the command line reads like that of vLLM."""

from vllm_probes.demo.vllm.entrypoints.serve import main

main()
