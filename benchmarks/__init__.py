"""Speed, and the paper's experiments. Run from a clone; not installed."""
