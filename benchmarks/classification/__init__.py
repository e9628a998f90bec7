"""Classification behind spatial transformers, section 6.2 of the paper."""
