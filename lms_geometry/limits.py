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

# Limits of the area of an output pixel, in source pixels; area.py says what they are for.

# The number of source pixels per output pixel above 1 that is still no shrinking. A grid in float32 gives a Jacobian
# with rounding errors, and an identity must stay exact. The number is subtracted, so that the area stays continuous.
TOLERANCE = 5e-4

# The square of an axis's extent below which the derivative along it turns into that of the bilinear reads: the
# difference of two edges that close to each other is mostly rounding error.
NARROW = 0.25

# The extent of an axis up to which two nodes are enough, and that from which on all nodes have equal weight.
TWO_NODES, ALL_NODES = 1.25, 2.0

# The relative difference of two singular values below which a divided difference becomes a derivative.
EQUAL = 1e-3
