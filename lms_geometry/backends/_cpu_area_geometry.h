/* The areas of a block of output pixels: the equations of area.py, all pixels at once, in loops that compilers
 * vectorise. */

#define area_stretch NAME(area_stretch)
#define area_extent NAME(area_extent)
#define area_rule NAME(area_rule)
#define area_shape NAME(area_shape)
#define area_share NAME(area_share)
#define area_find_outside NAME(area_find_outside)
#define area_locate NAME(area_locate)
#define area_differentiate NAME(area_differentiate)

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

/* Extents, axes and rules, from the vectors P and M. */
static void area_shape(const struct area_job *job, struct areas *a)
{
    const float limit = job->limit;
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
}

/* The Jacobian that pixels of an image may share, and its vectors P and M. */
static void area_share(const struct area_job *job, int64_t image, struct shared *s)
{
    const float *jacobian = s->steps.jacobian;
    if (job->jacobian)
        jacobian = job->jacobian + image * job->jacobian_stride;
    else
        area_mean_steps(job, image, &s->steps);
    EACH(i) {
        s->areas.xx[i] = jacobian[0];
        s->areas.xy[i] = jacobian[1];
        s->areas.yx[i] = jacobian[2];
        s->areas.yy[i] = jacobian[3];
    }
    s->image = image;
    s->areas.shrinks = area_stretch(job, &s->areas);
}

/* Which pixels of a block read nothing but the zeros around the image. */
static void area_find_outside(const struct area_job *job, struct areas *a)
{
    const float width = job->width, height = job->height, reaches = a->shrinks ? 0.5f : 0;
    int32_t outside[BLOCK], all = 1;
    EACH(i) {
        const float reach_x = reaches * (fabsf(a->xx[i]) + fabsf(a->xy[i]));
        const float reach_y = reaches * (fabsf(a->yx[i]) + fabsf(a->yy[i]));
        outside[i] = (a->x[i] + reach_x < -1) | (a->x[i] - reach_x > width) | (a->y[i] + reach_y < -1)
            | (a->y[i] - reach_y > height);
    }
    for (int i = 0; i < BLOCK / 4; i++) {
        a->outside[i] = outside[4 * i] & outside[4 * i + 1] & outside[4 * i + 2] & outside[4 * i + 3];
        all &= a->outside[i];
    }
    a->all_outside = all;
}

/* The areas of a block: those that its image's pixels share, or its own. Without areas only the centres are there. */
static struct areas *area_locate(const struct area_job *job, int64_t image, int64_t first, struct work *w)
{
    const float half_x = area_half(job, job->width), half_y = area_half(job, job->height);
    const float shift = job->align_corners ? 0 : 0.5f;
    const int may_share = !job->jacobian || !job->pixel_stride;
    struct areas *a = &w->own;
    if (may_share && w->shared.image != image) {
        area_share(job, image, &w->shared);
        area_tolerate(job, job->rounding, &w->shared.steps);
        if (w->shared.areas.shrinks)
            area_shape(job, &w->shared.areas);
    }
    float copy[2 * BLOCK];
    const float *here = area_points(job->grid + image * job->grid_stride, job->out_height * job->out_width, first, copy);
    if (may_share && area_repeats(job, image, first, here, &w->shared.steps)) {
        int32_t row[BLOCK], column[BLOCK];
        a = &w->shared.areas;
        a->usable = 1;
        area_places(job, first, row, column);
        EACH(i) {
            a->x[i] = here[2 * i];
            a->y[i] = here[2 * i + 1];
            a->after_x[i] = column[i] + 1 < job->out_width;
            a->after_y[i] = row[i] + 1 < job->out_height;
        }
    } else {
        area_jacobian(job, image, first, a);
        a->shrinks = area_stretch(job, a);
        if (a->shrinks)
            area_shape(job, a);
    }
    EACH(i) {
        /* Rounded as in grid_sample, since at a texel its derivative jumps. */
        a->x[i] = (clamp(a->x[i], -FAR_OUTSIDE, FAR_OUTSIDE) + 1) * half_x - shift;
        a->y[i] = (clamp(a->y[i], -FAR_OUTSIDE, FAR_OUTSIDE) + 1) * half_y - shift;
    }
    if (job->padding == ZEROS)
        area_find_outside(job, a);
    else {
        memset(a->outside, 0, sizeof a->outside);
        a->all_outside = 0;
    }
    return a;
}

/* The derivatives by the centre, per source pixel, and by the Jacobian (slope, slope_by_jacobian). */
static void area_differentiate(const struct area_job *job, const struct areas *a, const struct edges *e, float *x,
                               float *y, float *by_jacobian)
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
