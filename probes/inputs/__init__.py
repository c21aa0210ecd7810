"""What measures read, made ready: records, the one pass over a checkpoint, items, rows, labels."""
