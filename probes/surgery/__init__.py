"""Models taken apart, on a copy or by hooks: parts exchanged, experts removed, gradients."""
