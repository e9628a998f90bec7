/* The mean over the area of an output pixel and its gradients: what Python hands over (cpu_area.py mirrors the job),
 * and what a block of output pixels keeps. The arithmetic is in the five files _cpu_area_steps.h,
 * _cpu_area_geometry.h, _cpu_area_nodes.h, _cpu_area_reads.h and _cpu_area_jobs.h; names are those of area.py. */

/* Offsets count floats; an offset of 0 shares one entry. Slopes have an axis for the channels after the batch. */
struct area_job {
    const float *input;                           /* (B, C, H, W) */
    const float *grid;                            /* (B, h, w, 2) */
    const float *jacobian;                        /* (B, h, w, 2, 2); NULL: differences of the grid */
    float *value;                                 /* (B, C, h, w) */
    const float *value_gradient;                  /* (B, C, h, w) */
    float *image_gradient;                        /* (B, C, H, W), zeros that are added to */
    float *grid_gradient;                         /* (B, h, w, 2) */
    float *jacobian_gradient;                     /* (B, h, w, 2, 2); (B, pieces, 2, 2), to be summed, if shared */
    uint8_t *plain;                               /* (B, h, w): 1 where a pixel has no area */
    int64_t input_stride, grid_stride, jacobian_stride; /* from image to image */
    int64_t pixel_stride;                           /* of the Jacobian, from pixel to pixel */
    int64_t batch, channels, height, width, out_height, out_width;
    int64_t count;                                /* nodes along an axis of the area */
    int64_t rows;                                 /* rows of output pixels in a piece, of which the gradient is made */
    int64_t together;                             /* channels of an image whose gradient one thread adds up */
    float side;                                   /* side of the averaged square, in output pixels */
    float limit;                                  /* source pixels per output pixel that are still no shrinking */
    float rounding;                               /* differences between steps that are rounding, in source pixels */
    int32_t padding, align_corners;
    int64_t taken;                                /* items of work that threads have taken */
    int32_t any_area, any_plain;                  /* whether some pixel has an area, and whether some has none */
    int32_t any_unusable;                         /* whether some point is no number or far outside */
    int32_t out_of_memory;
};

enum {
    WINDOW = 4,           /* largest side of a window of texels that all nodes of a small area are read from */
    CHANNELS_AT_ONCE = 8, /* channels that are read for one pixel before the next */
    PLANES_AT_ONCE = 3,   /* channels that share a load of weights */
    SEARCH_GRAIN = 64     /* blocks that a thread takes at a time in a search for areas */
};

/* The limits NARROW, TWO_NODES, ALL_NODES and EQUAL come from limits.py. These are the nodes of Gauss's rule. */
#define GAUSS 0.28867513459481287f

/* The span of nodes, in texels, that a window of WINDOW texels holds. One of 2 would do, were it not for rounding. */
#define LARGEST_SPAN 1.99f

/* The rule of the nodes along one axis of the area. */
struct rule {
    float outer[BLOCK], weight[BLOCK]; /* position and weight of the two outer nodes */
    float inner[BLOCK];                /* weight of each inner node */
    float moment[BLOCK];               /* weight in the first moment, over weight times position */
    int count;                         /* nodes to be read: 2 where the inner ones have no weight in all of the block */
};

/* The points of a block of output pixels and of their neighbours, x and y in turn, and the pixels' places. */
struct neighbours {
    const float *here, *left, *right, *above, *below;
    int32_t row[BLOCK], column[BLOCK];
    float copies[5][2 * BLOCK];                                 /* where a block reaches over an end of the grid */
};

/* The areas of a block of output pixels. A vector's components are named x and y, a matrix's entries xx, xy, yx, yy. */
struct areas {
    float x[BLOCK], y[BLOCK];                                   /* the centre, in source pixels */
    float xx[BLOCK], xy[BLOCK], yx[BLOCK], yy[BLOCK];           /* the Jacobian J, then the axes E */
    int32_t after_x[BLOCK], after_y[BLOCK];                     /* whether J is the step to the next pixel */
    float rotation_x[BLOCK], rotation_y[BLOCK];                 /* the vector P of J, then its direction */
    float reflection_x[BLOCK], reflection_y[BLOCK];             /* the vector M */
    float p[BLOCK], m[BLOCK];                                   /* their lengths: sum and difference of the stretches */
    float per_p[BLOCK], per_m[BLOCK];                           /* the same of the extents, by their lengths */
    float extent_1[BLOCK], extent_2[BLOCK], rate_1[BLOCK], rate_2[BLOCK];
    struct rule along_x, along_y;                               /* along the first and the second axis of E */
    int usable;                                                 /* whether grid_sample can be given all points */
    int narrow;                                                 /* whether texel differences enter somewhere */
    int shrinks;                                                /* whether some pixel of the block has an area */
    int32_t outside[BLOCK / 4], all_outside;                    /* which fours of pixels read zeros only; if all do */
};

/* The steps from pixel to pixel of an affine grid, in its units, x and y in turn, as often as a block has points. */
struct steps {
    float right[2 * BLOCK], down[2 * BLOCK];
    float within[2 * BLOCK]; /* how much a step may differ from these */
    float jacobian[4];       /* the same in source pixels */
};

/* What all pixels have in common in an image with an affine grid, or with one Jacobian. */
struct shared {
    int64_t image;
    struct steps steps;
    struct areas areas;
};

/* What a thread keeps of the areas. */
struct work {
    struct areas own; /* those of a block whose pixels differ */
    struct shared shared;
};

/* What the edges say, contracted with the gradient for the value: the difference of the means over two opposite edges,
 * their mean less the value, and the difference of their moments, each for the edges across x and across y; and the
 * mean of the texel differences. */
struct edges {
    float difference[2][BLOCK], grown[2][BLOCK], turned[2][BLOCK], texels[2][BLOCK];
};

/* Nodes, BLOCK numbers each, and the windows of texels they are read from: one for all nodes, of WINDOW columns and of
 * WINDOW rows or one less, or one for each, of 2 x 2 texels. */
struct nodes {
    int count, windows;
    float *x, *y;            /* source pixels, after padding */
    float *rate_x, *rate_y;  /* derivative of x and y by what they were before padding: -1, 0 or 1 */
    float *weight, *moment;  /* in the mean of the area or of the edge, and in the edge's first moment */
    float *column, *row;     /* the first texel of each window */
    int32_t *texel;          /* its place in the plane */
    float *of_texel;         /* weight, or gradient times intensity, of every texel of a window, BLOCK numbers each */
    float *by_pixel;         /* the weights again, those of a pixel side by side */
};
