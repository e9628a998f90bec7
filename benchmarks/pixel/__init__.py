"""How near samplers come to the mean over an output pixel: the value, its derivatives, aliasing, and small scales."""
