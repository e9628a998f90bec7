"""Limits that the Python code, the C kernel and the Triton kernel share.

``setup.py`` reads this file and hands the numbers to the C compiler, so it imports nothing.
"""

# The largest coordinate of a grid, in half widths of the image. A point beyond it, or one that is infinite or NaN, is
# moved to this distance, where all is padding: bilinear kernels cast coordinates to integers, and the cast of a larger
# number is undefined (pytorch issue 24823).
FAR_OUTSIDE = 1e5

# The largest entry of a Jacobian, in source pixels per output pixel. A point near a horizon moves without bound, but
# products of four derivatives must stay finite in float32.
LARGEST_DERIVATIVE = 1e4
