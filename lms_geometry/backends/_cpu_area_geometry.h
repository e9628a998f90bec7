/* The areas of a block of output pixels: the equations of area.py, all pixels at once, in loops that compilers
 * vectorise. _cpu.c includes this and the next three files once for every instruction set, after _cpu_kernel.h. */

#define area_half NAME(area_half)
#define area_points NAME(area_points)
#define area_neighbours NAME(area_neighbours)
#define area_step NAME(area_step)
#define area_jacobian NAME(area_jacobian)
#define area_is_plain NAME(area_is_plain)
#define area_stretch NAME(area_stretch)
#define area_extent NAME(area_extent)
#define area_rule NAME(area_rule)
#define area_locate NAME(area_locate)
#define area_slopes NAME(area_slopes)

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

/* The points of a block and of their neighbours, and where in the image the pixels are. */
static void area_neighbours(const struct area_job *job, int64_t image, int64_t first, struct neighbours *n)
{
    const int64_t width = job->out_width, pixels = job->out_height * width;
    /* A pixel stands for its neighbour where there is no other. */
    const int64_t next = width > 1 ? 1 : 0, down = job->out_height > 1 ? width : 0;
    const float *grid = job->grid + image * job->grid_stride;
    const int32_t first_row = first / width, first_column = first % width;
    n->here = area_points(grid, pixels, first, n->copies[0]);
    if (job->jacobian)
        return;
    n->left = area_points(grid, pixels, first - next, n->copies[1]);
    n->right = area_points(grid, pixels, first + next, n->copies[2]);
    n->above = area_points(grid, pixels, first - down, n->copies[3]);
    n->below = area_points(grid, pixels, first + down, n->copies[4]);
    EACH(i) {
        n->row[i] = first_row;
        n->column[i] = first_column + i;
    }
    for (int64_t end = width; end < first_column + BLOCK; end += width)
        EACH(i) {
            const int over = first_column + i >= end;
            n->row[i] += over;
            n->column[i] -= over ? (int32_t)width : 0;
        }
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

/* The vectors P and M. Returns whether some pixel of the block shrinks. */
static int area_stretch(const struct area_job *job, struct areas *a)
{
    const float side = job->side, limit = job->limit;
    int shrinks = 0;
    EACH(i) {
        const float xx = derivative(a->xx[i]) * side, xy = derivative(a->xy[i]) * side;
        const float yx = derivative(a->yx[i]) * side, yy = derivative(a->yy[i]) * side;
        const float px = xx + yy, py = yx - xy, mx = xx - yy, my = xy + yx;
        a->p[i] = sqrtf(px * px + py * py);
        a->m[i] = sqrtf(mx * mx + my * my);
        a->rotation_x[i] = px;
        a->rotation_y[i] = py;
        a->reflection_x[i] = mx;
        a->reflection_y[i] = my;
    }
    for (int i = 0; i < BLOCK; i++)
        shrinks |= (a->p[i] + a->m[i]) / 2 > limit;
    return shrinks;
}

/* The extents and their derivatives by the stretches. */
ALWAYS_INLINE void area_extent(float stretch, float limit, float *extent, float *rate)
{
    const float share = clamp(fabsf(stretch) - limit, 0, 1), kept = share * (2 - share);
    const float growing = kept + 2 * fabsf(stretch) * (1 - share);
    *extent = stretch * kept;
    *rate = share > 0 ? (share < 1 ? growing : kept) : 0;
}

/* The rule for an axis with these components (nodes_along, edge_moment). */
static void area_rule(const struct area_job *job, const float *x, const float *y, struct rule *rule)
{
    const int count = job->count;
    const float full = (count - 1) / (2.f * count), inner = (count - 2.f) / count, each = 1.f / count;
    const float per_range = 1 / (ALL_NODES - TWO_NODES);
    float spread = 0; /* the sum of the squares of the inner positions */
    int is_long = 0;
    for (int i = 0; i < BLOCK; i++)
        is_long |= x[i] * x[i] + y[i] * y[i] > TWO_NODES * TWO_NODES;
    rule->count = is_long ? count : 2;
    if (!is_long) {
        EACH(i) {
            rule->outer[i] = GAUSS;
            rule->weight[i] = 0.5f;
            rule->moment[i] = 1;
        }
        return;
    }
    for (int k = 1; k < count - 1; k++)
        spread += ((k + 0.5f) / count - 0.5f) * ((k + 0.5f) / count - 0.5f);
    EACH(i) {
        const float share = clamp((sqrtf(x[i] * x[i] + y[i] * y[i]) - TWO_NODES) * per_range, 0, 1);
        const float outer = GAUSS + share * (full - GAUSS), weight = (1 - share * inner) / 2;
        rule->outer[i] = outer;
        rule->weight[i] = weight;
        rule->inner[i] = share * each;
        rule->moment[i] = 1 / (12 * (2 * weight * outer * outer + share * each * spread));
    }
}

/* The areas of a block. Returns whether some pixel has one; without, only the centres are there. */
static int area_locate(const struct area_job *job, int64_t image, int64_t first, struct areas *a)
{
    const float half_x = area_half(job, job->width), half_y = area_half(job, job->height);
    const float shift = job->align_corners ? 0 : 0.5f, limit = job->limit;
    area_jacobian(job, image, first, a);
    const int shrinks = area_stretch(job, a);
    EACH(i) {
        /* Rounded as in grid_sample, since at a texel its derivative jumps. */
        a->x[i] = (clamp(a->x[i], -FAR_OUTSIDE, FAR_OUTSIDE) + 1) * half_x - shift;
        a->y[i] = (clamp(a->y[i], -FAR_OUTSIDE, FAR_OUTSIDE) + 1) * half_y - shift;
    }
    if (!shrinks)
        return 0;
    EACH(i) {
        const float px = a->rotation_x[i], py = a->rotation_y[i], mx = a->reflection_x[i], my = a->reflection_y[i];
        const float p = a->p[i], m = a->m[i], by_p = 1 / (p > 0 ? p : 1), by_m = 1 / (m > 0 ? m : 1);
        float extent_1, extent_2, rate_1, rate_2;
        area_extent((p + m) / 2, limit, &extent_1, &rate_1);
        area_extent((p - m) / 2, limit, &extent_2, &rate_2);
        const float per_p = (extent_1 + extent_2) * by_p, per_m = (extent_1 - extent_2) * by_m;
        a->rotation_x[i] = p > 0 ? px * by_p : 1;
        a->rotation_y[i] = py * by_p;
        a->reflection_x[i] = m > 0 ? mx * by_m : 1;
        a->reflection_y[i] = my * by_m;
        a->extent_1[i] = extent_1;
        a->extent_2[i] = extent_2;
        a->rate_1[i] = rate_1;
        a->rate_2[i] = rate_2;
        a->per_p[i] = per_p;
        a->per_m[i] = per_m;
        /* E = U phi(S) V', in terms of J: what is 0 in J is 0 in E too, even to the last digit, where S has rank 1. */
        const float xx = (px + mx) / 2, xy = (my - py) / 2, yx = (py + my) / 2, yy = (px - mx) / 2;
        const float even = (per_p + per_m) / 2, odd = (per_p - per_m) / 2;
        a->xx[i] = even * xx + odd * yy;
        a->xy[i] = even * xy - odd * yx;
        a->yx[i] = even * yx - odd * xy;
        a->yy[i] = even * yy + odd * xx;
    }
    int narrow = 0;
    for (int i = 0; i < BLOCK; i++)
        narrow |= (a->extent_1[i] * a->extent_1[i] < NARROW) | (a->extent_2[i] * a->extent_2[i] < NARROW);
    a->narrow = narrow;
    area_rule(job, a->xx, a->yx, &a->along_x);
    area_rule(job, a->xy, a->yy, &a->along_y);
    return 1;
}

/* The derivatives by the centre, per source pixel, and by the Jacobian (slope, slope_by_jacobian). */
static void area_slopes(const struct area_job *job, const struct areas *a, const struct edges *e, float *x, float *y,
                        float *by_jacobian)
{
    const float side = job->side;
    EACH(i) {
        const float e1 = a->extent_1[i], e2 = a->extent_2[i], narrow_1 = e1 * e1 / NARROW, narrow_2 = e2 * e2 / NARROW;
        const float by_1 = narrow_1 < 1 ? e1 * (2 - narrow_1) / NARROW : 1 / e1;
        const float by_2 = narrow_2 < 1 ? e2 * (2 - narrow_2) / NARROW : 1 / e2;
        const float root_1 = positive(1 - narrow_1), root_2 = positive(1 - narrow_2);
        const float texels_1 = root_1 * root_1, texels_2 = root_2 * root_2;
        const float px = a->rotation_x[i], py = a->rotation_y[i], mx = a->reflection_x[i], my = a->reflection_y[i];

        const float twice_x = px * mx - py * my, twice_y = py * mx + px * my; /* twice the angle of U */
        const float even = (texels_1 + texels_2) / 2, odd = (texels_1 - texels_2) / 2;
        const float tx = e->texels[0][i], ty = e->texels[1][i];
        const float bilinear_x = even * tx + odd * (twice_x * tx + twice_y * ty);
        const float bilinear_y = even * ty + odd * (twice_y * tx - twice_x * ty);

        const float of_p = (by_1 + by_2) / 2, of_m = (by_1 - by_2) / 2;
        const float xx = of_p * px + of_m * mx, xy = of_m * my - of_p * py;
        const float yx = of_p * py + of_m * my, yy = of_p * px - of_m * mx;
        x[i] = xx * e->difference[0][i] + xy * e->difference[1][i] + bilinear_x;
        y[i] = yx * e->difference[0][i] + yy * e->difference[1][i] + bilinear_y;

        /* dv/dE, then by the vectors P and M of E, along and across their directions. */
        const float by_xx = xx * e->grown[0][i] + xy * e->turned[1][i];
        const float by_xy = xx * e->turned[0][i] + xy * e->grown[1][i];
        const float by_yx = yx * e->grown[0][i] + yy * e->turned[1][i];
        const float by_yy = yx * e->turned[0][i] + yy * e->grown[1][i];
        const float by_px = (by_xx + by_yy) / 2, by_py = (by_yx - by_xy) / 2;
        const float by_mx = (by_xx - by_yy) / 2, by_my = (by_xy + by_yx) / 2;
        const float along_p = px * by_px + py * by_py, across_p = px * by_py - py * by_px;
        const float along_m = mx * by_mx + my * by_my, across_m = mx * by_my - my * by_mx;
        const float mean = (a->rate_1[i] + a->rate_2[i]) / 2, half_rate = (a->rate_1[i] - a->rate_2[i]) / 2;
        const float largest = (a->p[i] + a->m[i]) / 2;
        const float new_along_p = along_p * mean + along_m * half_rate;
        const float new_along_m = along_p * half_rate + along_m * mean;
        const float new_across_p = across_p * (a->p[i] > EQUAL * largest ? a->per_p[i] : mean);
        const float new_across_m = across_m * (a->m[i] > EQUAL * largest ? a->per_m[i] : mean);
        const float gx = new_along_p * px - new_across_p * py, gy = new_along_p * py + new_across_p * px;
        const float hx = new_along_m * mx - new_across_m * my, hy = new_along_m * my + new_across_m * mx;
        by_jacobian[i] = side * (gx + hx);
        by_jacobian[BLOCK + i] = side * (hy - gy);
        by_jacobian[2 * BLOCK + i] = side * (gy + hy);
        by_jacobian[3 * BLOCK + i] = side * (gx - hx);
    }
}
