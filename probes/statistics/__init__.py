"""Methods that measures share: intervals, nulls, fits. They know arrays, and nothing of models."""
