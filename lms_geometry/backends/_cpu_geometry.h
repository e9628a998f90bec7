/* Where things are: the points of a grid, the Jacobian by finite differences, the footprint, and the samples in the
 * source with the texels that they read. Names are those of footprint.py. */

#define clamp NAME(clamp)
#define positive NAME(positive)
#define tent NAME(tent)
#define derivative NAME(derivative)
#define comparable NAME(comparable)
#define reflect NAME(reflect)
#define half NAME(half)
#define points NAME(points)
#define differences NAME(differences)
#define locate NAME(locate)
#define place NAME(place)

/* A comparison with NaN is false, so these two return a number for NaN as well. */
ALWAYS_INLINE float clamp(float x, float low, float high)
{
    x = x < high ? x : high;
    return x > low ? x : low;
}

ALWAYS_INLINE float positive(float x)
{
    return x > 0 ? x : 0;
}

/* The weight of a texel at this distance in a bilinear read. */
ALWAYS_INLINE float tent(float distance)
{
    return positive(1 - fabsf(distance));
}

/* An entry of the Jacobian, within the limit; 0 if it is not finite. */
ALWAYS_INLINE float derivative(float x)
{
    return fabsf(x) <= FLT_MAX ? clamp(x, -LARGEST_DERIVATIVE, LARGEST_DERIVATIVE) : 0;
}

/* A length to be compared, in which NaN counts as infinite. */
ALWAYS_INLINE float comparable(float length)
{
    return length <= FLT_MAX ? length : length != length ? INFINITY : FLT_MAX;
}

/* Mirror a block of coordinates at the ends of the image until they are inside; `shift` is half a texel where the ends
 * are the outer edges of the outermost texels. */
static void reflect(float *x, float last, float shift)
{
    const float period = 2 * (last + 2 * shift);
    float turns[BLOCK];
    EACH(i) {
        x[i] = fabsf(x[i] + shift);
        turns[i] = clamp(x[i] / period, 0, 1e9f);
    }
    EACH(i) x[i] -= (int32_t)turns[i] * period;
    EACH(i) x[i] = (x[i] < period - x[i] ? x[i] : period - x[i]) - shift;
}

/* Source pixels per grid unit along an axis of `size` texels (coordinates.py). */
ALWAYS_INLINE float half(const struct sample_job *job, int64_t size)
{
    return (job->align_corners ? size - 1 : size) / 2.f;
}

/* Load BLOCK points of a grid from the pixel `first` on. The first pixel stands for all before it, and the last for all
 * after it. */
static void points(const float *grid, int64_t pixels, int64_t first, float *x, float *y)
{
    if (first >= 0 && first + BLOCK <= pixels)
        EACH(i) {
            x[i] = grid[2 * (first + i)];
            y[i] = grid[2 * (first + i) + 1];
        }
    else
        for (int i = 0; i < BLOCK; i++) {
            int64_t pixel = first + i < pixels ? first + i : pixels - 1;
            pixel = pixel > 0 ? pixel : 0;
            x[i] = grid[2 * pixel];
            y[i] = grid[2 * pixel + 1];
        }
}

/* The Jacobian by finite differences along one axis: the smaller of the steps to the two neighbours, which are `next`
 * pixels away (finite_difference_jacobian). `place`, the position along the axis up to `last`, tells which pixels have
 * only one neighbour. */
static void differences(const struct sample_job *job, const float *grid, int64_t first, int64_t next,
                        const float *here_x, const float *here_y, const int32_t *place, int32_t last, float *x,
                        float *y)
{
    const int64_t pixels = job->out_height * job->out_width;
    const float half_x = half(job, job->width), half_y = half(job, job->height);
    float before_x[BLOCK], before_y[BLOCK], after_x[BLOCK], after_y[BLOCK];

    points(grid, pixels, first - next, before_x, before_y);
    points(grid, pixels, first + next, after_x, after_y);
    EACH(i) {
        const float bx = (here_x[i] - before_x[i]) * half_x, by = (here_y[i] - before_y[i]) * half_y;
        const float ax = (after_x[i] - here_x[i]) * half_x, ay = (after_y[i] - here_y[i]) * half_y;
        const int smaller = comparable(ax * ax + ay * ay) * NEARLY <= comparable(bx * bx + by * by);
        const int after = (place[i] < last) & ((place[i] == 0) | smaller);
        x[i] = after ? ax : bx;
        y[i] = after ? ay : by;
    }
}

/* The centres in source pixels, and the footprint L (8, 9). */
static void locate(const struct sample_job *job, int64_t image, int64_t first, struct pixels *p)
{
    const int64_t pixels = job->out_height * job->out_width, width = job->out_width;
    const float *grid = job->grid + image * job->grid_stride;
    const float half_x = half(job, job->width), half_y = half(job, job->height), shift = job->align_corners ? 0 : 0.5f;
    const float sigma = job->sigma, jitter = job->jitter * job->jitter;
    float x[BLOCK], y[BLOCK], xx[BLOCK] = {0}, xy[BLOCK] = {0}, yx[BLOCK] = {0}, yy[BLOCK] = {0};

    points(grid, pixels, first, x, y);
    if (job->jacobian) {
        const float *jacobian = job->jacobian + image * job->jacobian_stride;
        for (int i = 0; i < BLOCK; i++) {
            const int64_t pixel = first + i < pixels ? first + i : pixels - 1;
            xx[i] = jacobian[pixel * job->pixel_stride];
            xy[i] = jacobian[pixel * job->pixel_stride + 1];
            yx[i] = jacobian[pixel * job->pixel_stride + 2];
            yy[i] = jacobian[pixel * job->pixel_stride + 3];
        }
    } else {
        int32_t row[BLOCK], column[BLOCK];
        row[0] = first / width;
        column[0] = first % width;
        for (int i = 1; i < BLOCK; i++) {
            const int over = column[i - 1] + 1 == width;
            row[i] = row[i - 1] + over;
            column[i] = over ? 0 : column[i - 1] + 1;
        }
        if (width > 1)
            differences(job, grid, first, 1, x, y, column, width - 1, xx, yx);
        if (job->out_height > 1)
            differences(job, grid, first, width, x, y, row, job->out_height - 1, xy, yy);
    }
    EACH(i) {
        p->unit_x[i] = fabsf(x[i]) <= FAR_OUTSIDE ? half_x : 0;
        p->unit_y[i] = fabsf(y[i]) <= FAR_OUTSIDE ? half_y : 0;
    }
    EACH(i) {
        x[i] = clamp(x[i], -FAR_OUTSIDE, FAR_OUTSIDE);
        y[i] = clamp(y[i], -FAR_OUTSIDE, FAR_OUTSIDE);
    }
    EACH(i) {
        p->x[i] = (x[i] + 1) * half_x - shift;
        p->y[i] = (y[i] + 1) * half_y - shift;
    }
    EACH(i) {
        const float a = derivative(xx[i]) * sigma, b = derivative(xy[i]) * sigma;
        const float c = derivative(yx[i]) * sigma, d = derivative(yy[i]) * sigma;
        const float row_x = a * a + b * b, row_y = c * c + d * d, forth = a * d, back = b * c;
        const float area = fabsf(forth - back) > FLAT * (fabsf(forth) + fabsf(back)) ? forth - back : 0;
        const float determinant = area * area + jitter * (row_x + row_y + jitter);
        const float l11 = sqrtf(row_x + jitter), scale = 1 / (l11 > 0 ? l11 : 1);
        p->l11[i] = l11;
        p->l21[i] = (a * c + b * d) * scale;
        p->l22[i] = sqrtf(l11 > 0 ? determinant : row_y + jitter) * (l11 > 0 ? scale : 1);
    }
}

/* Send the samples to the source, and return how many lie outside the image. Each reads four texels, at (0, 0), (1, 0),
 * (0, 1) and (1, 1) from its first one, which always has these neighbours inside the image. Their weights are those of
 * a tent around the sample, which are 0 for a texel that the sample does not reach. */
static int place(const struct sample_job *job, const struct pixels *p, struct samples *s)
{
    const float last_x = job->width - 1, last_y = job->height - 1, shift = job->align_corners ? 0 : 0.5f;
    const float edge_x = ON_EDGE * half(job, job->width), edge_y = ON_EDGE * half(job, job->height);
    const int32_t width = job->width, padding = job->padding;
    int outside = 0;
    for (int64_t k = 0; k < job->samples; k++) {
        const float *noise_x = s->noise_x + k * BLOCK, *noise_y = s->noise_y + k * BLOCK;
        float *tap = s->tap + 4 * k * BLOCK, *inside = s->inside + k * BLOCK;
        int32_t *texel = s->texel + k * BLOCK;
        float x[BLOCK], y[BLOCK];
        EACH(i) {
            x[i] = p->x[i] + p->l11[i] * noise_x[i];
            y[i] = p->y[i] + p->l21[i] * noise_x[i] + p->l22[i] * noise_y[i];
        }
        if (job->mask && k > 0)
            EACH(i) {
                const int in = (x[i] >= -edge_x) & (x[i] <= last_x + edge_x) & (y[i] >= -edge_y)
                    & (y[i] <= last_y + edge_y);
                inside[i] = in;
                outside += !in;
            }
        if (padding == REFLECTION) {
            reflect(x, last_x, shift);
            reflect(y, last_y, shift);
        }
        if (padding != ZEROS)
            EACH(i) {
                x[i] = clamp(x[i], 0, last_x);
                y[i] = clamp(y[i], 0, last_y);
            }
        float first_x[BLOCK], first_y[BLOCK], left[BLOCK], right[BLOCK], above[BLOCK], below[BLOCK];
        EACH(i) {
            first_x[i] = clamp(x[i], 0, last_x - 1);
            first_y[i] = clamp(y[i], 0, last_y - 1);
        }
        EACH(i) {
            const int32_t column = first_x[i], row = first_y[i];
            texel[i] = row * width + column;
            left[i] = tent(x[i] - column);
            right[i] = tent(x[i] - column - 1);
            above[i] = tent(y[i] - row);
            below[i] = tent(y[i] - row - 1);
        }
        EACH(i) {
            tap[4 * i] = above[i] * left[i];
            tap[4 * i + 1] = above[i] * right[i];
            tap[4 * i + 2] = below[i] * left[i];
            tap[4 * i + 3] = below[i] * right[i];
        }
    }
    return outside;
}
