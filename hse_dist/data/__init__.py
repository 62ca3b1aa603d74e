"""From interaction logs to training batches: resolve, prepare, open, stream, batch."""
