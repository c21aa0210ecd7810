"""How probes are run: one pass over each checkpoint for all of them, here or on workers."""
