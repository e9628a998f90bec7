/* The steps between the points of a grid: the Jacobians that they are, and whether all pixels have the same. _cpu.c
 * includes this and the next four files once for every instruction set, after _cpu_kernel.h. */

#define area_half NAME(area_half)
#define area_points NAME(area_points)
#define area_places NAME(area_places)
#define area_neighbours NAME(area_neighbours)
#define area_step NAME(area_step)
#define area_jacobian NAME(area_jacobian)
#define area_is_plain NAME(area_is_plain)
#define area_mean_steps NAME(area_mean_steps)
#define area_tolerate NAME(area_tolerate)
#define area_stepped NAME(area_stepped)
#define area_repeats NAME(area_repeats)

/* Source pixels per grid unit along an axis of so many texels. */
ALWAYS_INLINE float area_half(const struct area_job *job, int64_t size)
{
    return (job->align_corners ? size - 1 : size) / 2.f;
}

/* BLOCK points of a grid from a pixel on, x and y in turn. Pixels before the first and after the last are these. */
static const float *area_points(const float *grid, int64_t pixels, int64_t first, float *copy)
{
    if (first >= 0 && first + BLOCK <= pixels)
        return grid + 2 * first;
    for (int i = 0; i < BLOCK; i++) {
        int64_t pixel = first + i < pixels ? first + i : pixels - 1;
        pixel = pixel > 0 ? pixel : 0;
        copy[2 * i] = grid[2 * pixel];
        copy[2 * i + 1] = grid[2 * pixel + 1];
    }
    return copy;
}

/* The row and the column of every pixel of a block. */
static void area_places(const struct area_job *job, int64_t first, int32_t *row, int32_t *column)
{
    const int64_t width = job->out_width;
    const int32_t first_row = first / width, first_column = first % width;
    EACH(i) {
        row[i] = first_row;
        column[i] = first_column + i;
    }
    for (int64_t end = width; end < first_column + BLOCK; end += width)
        EACH(i) {
            const int over = first_column + i >= end;
            row[i] += over;
            column[i] -= over ? (int32_t)width : 0;
        }
}

/* The points of a block and of their neighbours, and where in the image the pixels are. */
static void area_neighbours(const struct area_job *job, int64_t image, int64_t first, struct neighbours *n)
{
    const int64_t width = job->out_width, pixels = job->out_height * width;
    /* A pixel stands for its neighbour where there is no other. */
    const int64_t next = width > 1 ? 1 : 0, down = job->out_height > 1 ? width : 0;
    const float *grid = job->grid + image * job->grid_stride;
    n->here = area_points(grid, pixels, first, n->copies[0]);
    if (job->jacobian)
        return;
    n->left = area_points(grid, pixels, first - next, n->copies[1]);
    n->right = area_points(grid, pixels, first + next, n->copies[2]);
    n->above = area_points(grid, pixels, first - down, n->copies[3]);
    n->below = area_points(grid, pixels, first + down, n->copies[4]);
    area_places(job, first, n->row, n->column);
}

/* J along one axis: of the steps to both neighbours the smaller (finite_difference_jacobian). The place along the axis
 * tells pixels that have only one. Returns whether it is the step to the next pixel. */
ALWAYS_INLINE int area_step(const float *before, const float *here, const float *next, float half_x, float half_y,
                            int32_t place_along, int32_t last, float *x, float *y)
{
    const float bx = (here[0] - before[0]) * half_x, by = (here[1] - before[1]) * half_y;
    const float ax = (next[0] - here[0]) * half_x, ay = (next[1] - here[1]) * half_y;
    const float to_next = ax * ax + ay * ay, from_before = bx * bx + by * by;
    const int smaller = (to_next * NEARLY <= from_before) | (from_before != from_before); /* NaN is the longest */
    const int after = (place_along < last) & ((place_along == 0) | smaller);
    *x = after ? ax : bx;
    *y = after ? ay : by;
    return after;
}

/* The points of the grid and the Jacobians. */
static void area_jacobian(const struct area_job *job, int64_t image, int64_t first, struct areas *a)
{
    const int64_t pixels = job->out_height * job->out_width;
    const float half_x = area_half(job, job->width), half_y = area_half(job, job->height);
    const int32_t last_column = job->out_width - 1, last_row = job->out_height - 1;
    const float *jacobian = job->jacobian + image * job->jacobian_stride;
    struct neighbours n;
    area_neighbours(job, image, first, &n);
    if (!job->jacobian)
        EACH(i) {
            const float *here = n.here + 2 * i;
            a->after_x[i] = area_step(n.left + 2 * i, here, n.right + 2 * i, half_x, half_y, n.column[i], last_column,
                                      a->xx + i, a->yx + i);
            a->after_y[i] = area_step(n.above + 2 * i, here, n.below + 2 * i, half_x, half_y, n.row[i], last_row,
                                      a->xy + i, a->yy + i);
            a->x[i] = here[0];
            a->y[i] = here[1];
        }
    else {
        EACH(i) {
            a->x[i] = n.here[2 * i];
            a->y[i] = n.here[2 * i + 1];
        }
        for (int i = 0; i < BLOCK; i++) {
            const float *mine = jacobian + (first + i < pixels ? first + i : pixels - 1) * job->pixel_stride;
            a->xx[i] = mine[0];
            a->xy[i] = mine[1];
            a->yx[i] = mine[2];
            a->yy[i] = mine[3];
        }
    }
    int unusable = 0;
    for (int i = 0; i < BLOCK; i++)
        unusable |= !(fabsf(a->x[i]) <= FAR_OUTSIDE) | !(fabsf(a->y[i]) <= FAR_OUTSIDE);
    a->usable = !unusable;
    for (int i = pixels - first < BLOCK ? pixels - first : BLOCK; i < BLOCK; i++)
        a->xx[i] = a->xy[i] = a->yx[i] = a->yy[i] = 0; /* no pixel of the image, so none with an area */
}

/* Whether a quick look at a block finds only usable points and no area. A pixel shrinks nowhere if limit^2 I - J'J has
 * no negative eigenvalue. */
static int area_is_plain(const struct area_job *job, int64_t image, int64_t first)
{
    const float half_x = area_half(job, job->width), half_y = area_half(job, job->height);
    const float square = job->limit / job->side * (job->limit / job->side);
    const int32_t last_column = job->out_width - 1, last_row = job->out_height - 1;
    const int64_t pixels = job->out_height * job->out_width - first; /* from the first on */
    struct neighbours n;
    int32_t plain[BLOCK], all = 1;
    area_neighbours(job, image, first, &n);
    EACH(i) {
        const float *here = n.here + 2 * i;
        float xx, xy, yx, yy;
        area_step(n.left + 2 * i, here, n.right + 2 * i, half_x, half_y, n.column[i], last_column, &xx, &yx);
        area_step(n.above + 2 * i, here, n.below + 2 * i, half_x, half_y, n.row[i], last_row, &xy, &yy);
        const float a = square - xx * xx - yx * yx, b = square - xy * xy - yy * yy, c = xx * xy + yx * yy;
        plain[i] = (a >= 0) & (b >= 0) & (a * b >= c * c) & (fabsf(here[0]) <= FAR_OUTSIDE)
            & (fabsf(here[1]) <= FAR_OUTSIDE);
    }
    for (int i = 0; i < (pixels < BLOCK ? pixels : BLOCK); i++)
        all &= plain[i];
    return all;
}

/* The steps of an image's grid, to the next pixel and to the one below, on average over its first row and column: those
 * of all pixels, if the grid is affine. */
static void area_mean_steps(const struct area_job *job, int64_t image, struct steps *s)
{
    const int64_t columns = job->out_width - 1, rows = job->out_height - 1;
    const float *grid = job->grid + image * job->grid_stride;
    const float half[2] = {area_half(job, job->width), area_half(job, job->height)};
    for (int k = 0; k < 2; k++) {
        const float right = columns ? (grid[2 * columns + k] - grid[k]) / columns : 0;
        const float down = rows ? (grid[2 * rows * job->out_width + k] - grid[k]) / rows : 0;
        s->jacobian[2 * k] = right * half[k];
        s->jacobian[2 * k + 1] = down * half[k];
        for (int i = 0; i < BLOCK; i++) {
            s->right[2 * i + k] = right;
            s->down[2 * i + k] = down;
        }
    }
}

/* Let steps differ by so many source pixels along each axis and still be the same. */
static void area_tolerate(const struct area_job *job, float within, struct steps *s)
{
    const float within_x = within / area_half(job, job->width), within_y = within / area_half(job, job->height);
    EACH(i) {
        s->within[2 * i] = within_x;
        s->within[2 * i + 1] = within_y;
    }
}

/* The points that are `offset` pixels on from those of a block, or, where the grid has none, those a step away. */
static const float *area_stepped(const float *grid, int64_t pixels, int64_t first, int64_t offset, const float *here,
                                 const float *step, float sign, float *copy)
{
    const int64_t from = first + offset, here_on = pixels - first < BLOCK ? pixels - first : BLOCK;
    if (from >= 0 && from + BLOCK <= pixels && here_on == BLOCK)
        return grid + 2 * from;
    const int64_t begin = from < 0 ? -from : 0, end = from + here_on < pixels ? here_on : pixels - from;
    INDEPENDENT for (int k = 0; k < 2 * BLOCK; k++) copy[k] = here[k] + sign * step[k];
    if (begin < end)
        memcpy(copy + 2 * begin, grid + 2 * (from + begin), 8 * (end - begin));
    return copy;
}

/* Whether all pixels of a block have the Jacobian of their image, and usable points `here`: whether one Jacobian is
 * given for all, or their steps to all neighbours are those of the image. */
static int area_repeats(const struct area_job *job, int64_t image, int64_t first, const float *here,
                        const struct steps *s)
{
    const int64_t width = job->out_width, pixels = job->out_height * width, column = first % width;
    const float *grid = job->grid + image * job->grid_stride;
    int differs = 0;
    INDEPENDENT for (int k = 0; k < 2 * BLOCK; k++) differs |= !(fabsf(here[k]) <= FAR_OUTSIDE);
    if (job->jacobian)
        return !differs;
    float copies[3][2 * BLOCK], within[2 * BLOCK];
    const float *right = area_stepped(grid, pixels, first, 1, here, s->right, 1, copies[0]);
    const float *below = area_stepped(grid, pixels, first, width, here, s->down, 1, copies[1]);
    const float *above = area_stepped(grid, pixels, first, -width, here, s->down, -1, copies[2]);
    memcpy(within, s->within, sizeof within);
    for (int64_t end = width - 1 - column; end < BLOCK; end += width) /* to the next row is no step */
        within[2 * end] = within[2 * end + 1] = INFINITY;
    INDEPENDENT for (int k = 0; k < 2 * BLOCK; k++) {
        differs |= !(fabsf(right[k] - here[k] - s->right[k]) <= within[k]);
        differs |= !(fabsf(below[k] - here[k] - s->down[k]) <= s->within[k]);
        differs |= !(fabsf(here[k] - above[k] - s->down[k]) <= s->within[k]);
    }
    for (int k = 0; k < (column > 0 ? 2 : 0); k++)
        differs |= !(fabsf(here[k] - grid[2 * first + k - 2] - s->right[k]) <= s->within[k]);
    return !differs;
}
