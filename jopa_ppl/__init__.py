"""jopa_ppl."""
