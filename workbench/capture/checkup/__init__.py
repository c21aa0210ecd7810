"""What capture would do on this machine with a given model, found out before a training."""
