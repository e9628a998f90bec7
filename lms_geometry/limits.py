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

# The largest number of a draw of unit variance. The products of a fit must stay finite in float32, whatever is given.
FARTHEST_DRAW = 100.0

# Of two lengths the first counts as no longer than the second if this much of it is not. Where a grid is folded in
# the middle of a pixel both are equal but for rounding, and all backends must choose the same.
NEARLY = 1 - 2**-10

# The largest shear that makes the axes of draws uncorrelated, whose square must stay finite beside that of a footprint.
LARGEST_SHEAR = 1e9

# The determinant of a Jacobian, relative to the sizes of its two products, that still counts as 0. What a fit says
# across a line of samples hangs on whether they lie on one.
FLAT = 1e-6

# How far outside of the outermost texel centres a sample still counts as inside, in half widths of the image. A row of
# samples may lie on the outermost row of texels but for rounding.
ON_EDGE = 4e-6

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
