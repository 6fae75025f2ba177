"""The metrics of `GET /metrics`, in ternvl's names, in those of vLLM, or in both."""
