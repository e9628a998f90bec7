/* The fused kernel. _cpu.c includes it once for every instruction set, under another NAME.
 *
 * The value and the slopes of an output pixel are linear in what its K samples read. So a block of output pixels is
 * done in two steps: `locate`, `place`, `sum` and `fit` work out where the samples fall and with what weight each
 * enters the value and the slopes, all pixels of the block at once, in loops that compilers vectorise; then `read`
 * reads and adds, a few channels at a time. Names are those of footprint.py and least_squares.py. */

#define clamp NAME(clamp)
#define positive NAME(positive)
#define tent NAME(tent)
#define derivative NAME(derivative)
#define comparable NAME(comparable)
#define reflect NAME(reflect)
#define sum4 NAME(sum4)
#define half NAME(half)
#define points NAME(points)
#define differences NAME(differences)
#define locate NAME(locate)
#define load NAME(load)
#define whiten NAME(whiten)
#define place NAME(place)
#define sum NAME(sum)
#define fit NAME(fit)
#define read_planes NAME(read_planes)
#define transpose NAME(transpose)
#define pack NAME(pack)
#define read_packed NAME(read_packed)
#define read_channels NAME(read_channels)
#define read NAME(read)
#define sample NAME(sample)
#define gradient NAME(gradient)

/* Declared for every set anew: GCC keeps a vector that is wider than the set of its declaration in memory. */
#define float8 NAME(float8)
typedef float float8 __attribute__((vector_size(32), aligned(4)));

/* Comparisons are false for NaN: these return numbers whatever comes. */
ALWAYS_INLINE float clamp(float x, float low, float high)
{
    x = x < high ? x : high;
    return x > low ? x : low;
}

ALWAYS_INLINE float positive(float x)
{
    return x > 0 ? x : 0;
}

/* How much of a texel at this distance a bilinear read takes. */
ALWAYS_INLINE float tent(float distance)
{
    return positive(1 - fabsf(distance));
}

/* nan_to_num(0, 0, 0), then clamped. */
ALWAYS_INLINE float derivative(float x)
{
    return fabsf(x) <= FLT_MAX ? clamp(x, -LARGEST_DERIVATIVE, LARGEST_DERIVATIVE) : 0;
}

/* nan_to_num(inf): a length that is no number is longer than any. */
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

/* The sums of four vectors. */
ALWAYS_INLINE float4 sum4(const float4 *a)
{
    const float4 p = SHUFFLE(a[0], a[1], 0, 4, 1, 5) + SHUFFLE(a[0], a[1], 2, 6, 3, 7);
    const float4 q = SHUFFLE(a[2], a[3], 0, 4, 1, 5) + SHUFFLE(a[2], a[3], 2, 6, 3, 7);
    return SHUFFLE(p, q, 0, 1, 4, 5) + SHUFFLE(p, q, 2, 3, 6, 7);
}

/* Rows to columns. */
ALWAYS_INLINE void transpose(float4 *a)
{
    const float4 p = SHUFFLE(a[0], a[1], 0, 4, 1, 5), q = SHUFFLE(a[2], a[3], 0, 4, 1, 5);
    const float4 r = SHUFFLE(a[0], a[1], 2, 6, 3, 7), t = SHUFFLE(a[2], a[3], 2, 6, 3, 7);
    a[0] = SHUFFLE(p, q, 0, 1, 4, 5);
    a[1] = SHUFFLE(p, q, 2, 3, 6, 7);
    a[2] = SHUFFLE(r, t, 0, 1, 4, 5);
    a[3] = SHUFFLE(r, t, 2, 3, 6, 7);
}

/* Source pixels per grid unit along an axis of so many texels. */
ALWAYS_INLINE float half(const struct sample_job *job, int64_t size)
{
    return (job->align_corners ? size - 1 : size) / 2.f;
}

/* BLOCK points of a grid from a pixel on. Pixels before the first and after the last are these. */
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

/* J by finite differences along one axis: of the steps to both neighbours, which are `next` pixels away, the smaller
 * (finite_difference_jacobian). The place along the axis tells pixels that have only one. */
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
        const int smaller = comparable(ax * ax + ay * ay) <= comparable(bx * bx + by * by);
        const int after = (place[i] < last) & ((place[i] == 0) | smaller);
        x[i] = after ? ax : bx;
        y[i] = after ? ay : by;
    }
}

/* The centres in source pixels, and the footprint L (8, 9). */
static void locate(const struct sample_job *job, int64_t image, int64_t first, struct pixels *p)
{
    const int64_t pixels = job->out_height * job->out_width, width = job->out_width;
    const float *grid = job->grid + image * job->next_grid;
    const float half_x = half(job, job->width), half_y = half(job, job->height), shift = job->align_corners ? 0 : 0.5f;
    const float sigma = job->sigma, jitter = job->jitter * job->jitter;
    float x[BLOCK], y[BLOCK], xx[BLOCK] = {0}, xy[BLOCK] = {0}, yx[BLOCK] = {0}, yy[BLOCK] = {0};

    points(grid, pixels, first, x, y);
    if (job->jacobian) {
        const float *jacobian = job->jacobian + image * job->next_jacobian;
        for (int i = 0; i < BLOCK; i++) {
            const int64_t pixel = first + i < pixels ? first + i : pixels - 1;
            xx[i] = jacobian[pixel * job->next_pixel];
            xy[i] = jacobian[pixel * job->next_pixel + 1];
            yx[i] = jacobian[pixel * job->next_pixel + 2];
            yy[i] = jacobian[pixel * job->next_pixel + 3];
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
        const float row_x = a * a + b * b, row_y = c * c + d * d, area = a * d - b * c;
        const float determinant = area * area + jitter * (row_x + row_y + jitter);
        const float l11 = sqrtf(row_x + jitter), scale = 1 / (l11 > 0 ? l11 : 1);
        p->l11[i] = l11;
        p->l21[i] = (a * c + b * d) * scale;
        p->l22[i] = sqrtf(l11 > 0 ? determinant : row_y + jitter) * (l11 > 0 ? scale : 1);
    }
}

/* The draws of a block, shared by the batch or one image's. The centre's is 0. */
static void load(const struct sample_job *job, int64_t image, int64_t first, int n, struct samples *s)
{
    const int64_t pixels = job->out_height * job->out_width;
    const float *noise = job->noise + image * job->next_noise + 2 * first;
    EACH(i) s->noise_x[i] = s->noise_y[i] = 0;
    for (int64_t k = 1; k < job->samples; k++, noise += 2 * pixels) {
        float *x = s->noise_x + k * BLOCK, *y = s->noise_y + k * BLOCK;
        if (n == BLOCK) {
            EACH(i) {
                x[i] = noise[2 * i];
                y[i] = noise[2 * i + 1];
            }
        } else {
            EACH(i) x[i] = y[i] = 0;
            for (int i = 0; i < n; i++) {
                x[i] = noise[2 * i];
                y[i] = noise[2 * i + 1];
            }
        }
    }
}

/* Give the draws mean 0 and covariance 1, by Gram-Schmidt over the two axes (noise.py). */
static void whiten(const struct sample_job *job, struct samples *s)
{
    float mean_x[BLOCK] = {0}, mean_y[BLOCK] = {0}, xx[BLOCK] = {0}, xy[BLOCK] = {0}, yy[BLOCK] = {0};
    const float each = 1.f / (job->samples - 1);
    for (int64_t k = 1; k < job->samples; k++)
        EACH(i) {
            mean_x[i] += each * s->noise_x[k * BLOCK + i];
            mean_y[i] += each * s->noise_y[k * BLOCK + i];
        }
    for (int64_t k = 1; k < job->samples; k++)
        EACH(i) {
            const float x = s->noise_x[k * BLOCK + i] -= mean_x[i], y = s->noise_y[k * BLOCK + i] -= mean_y[i];
            xx[i] += each * x * x;
            xy[i] += each * x * y;
        }
    for (int64_t k = 1; k < job->samples; k++)
        EACH(i) {
            const float y = s->noise_y[k * BLOCK + i] -= xy[i] / xx[i] * s->noise_x[k * BLOCK + i];
            yy[i] += each * y * y;
        }
    EACH(i) {
        xx[i] = 1 / sqrtf(xx[i]);
        yy[i] = 1 / sqrtf(yy[i]);
    }
    for (int64_t k = 1; k < job->samples; k++)
        EACH(i) {
            s->noise_x[k * BLOCK + i] *= xx[i];
            s->noise_y[k * BLOCK + i] *= yy[i];
        }
}

/* Send the samples to the source. Each reads the texels (0, 0), (1, 0), (0, 1), (1, 1) from its first on, a first that
 * always has neighbours: a tent around the sample gives a texel it does not reach, or one outside, the weight 0.
 * Returns how many lie outside. */
static int place(const struct sample_job *job, const struct pixels *p, struct samples *s)
{
    const float last_x = job->width - 1, last_y = job->height - 1, shift = job->align_corners ? 0 : 0.5f;
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
                const int in = (x[i] >= 0) & (x[i] <= last_x) & (y[i] >= 0) & (y[i] <= last_y);
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

/* The moments of the draws in the fit, those with `inside` 1 and not 0. */
static void sum(const struct sample_job *job, const struct samples *s, const float *inside, struct moments *m)
{
    EACH(i) m->count[i] = m->mean_x[i] = m->mean_y[i] = 0;
    for (int64_t k = 1; k < job->samples; k++) {
        const float *x = s->noise_x + k * BLOCK, *y = s->noise_y + k * BLOCK, *in = inside + k * BLOCK;
        EACH(i) {
            m->count[i] += in[i];
            m->mean_x[i] += in[i] * x[i];
            m->mean_y[i] += in[i] * y[i];
        }
    }
    EACH(i) {
        const float count = m->count[i] > 1 ? m->count[i] : 1, kept = count / (count + job->ridge);
        const float each = job->intercept ? 1 / count : 0, lost = job->ridge * kept;
        m->count[i] = count;
        m->kept[i] = kept;
        m->mean_x[i] *= each;
        m->mean_y[i] *= each;
        m->xx[i] = lost * m->mean_x[i] * m->mean_x[i];
        m->xy[i] = lost * m->mean_x[i] * m->mean_y[i];
        m->yy[i] = lost * m->mean_y[i] * m->mean_y[i];
    }
    for (int64_t k = 1; k < job->samples; k++) {
        const float *noise_x = s->noise_x + k * BLOCK, *noise_y = s->noise_y + k * BLOCK, *in = inside + k * BLOCK;
        float *part_x = m->x + k * BLOCK, *part_y = m->y + k * BLOCK;
        EACH(i) {
            const float x = in[i] * (noise_x[i] - m->mean_x[i]), y = in[i] * (noise_y[i] - m->mean_y[i]);
            m->xx[i] += x * x;
            m->xy[i] += x * y;
            m->yy[i] += y * y;
            part_x[i] = in[i] * (noise_x[i] - m->kept[i] * m->mean_x[i]);
            part_y[i] = in[i] * (noise_y[i] - m->kept[i] * m->mean_y[i]);
        }
    }
}

/* The weights of the samples: A_uv = (L Q L' + eps I)^-1 L q as solve_slope has it, and A_1. Differences from the
 * centre are in the centre's own weights. */
static void fit(const struct sample_job *job, const struct pixels *p, const struct moments *m, const float *inside,
                struct samples *s)
{
    float xx[BLOCK], xy[BLOCK], yx[BLOCK], yy[BLOCK], drift_x[BLOCK], drift_y[BLOCK], each[BLOCK];
    EACH(i) {
        const float l11 = p->l11[i], l21 = p->l21[i], l22 = p->l22[i], qxx = m->xx[i], qxy = m->xy[i], qyy = m->yy[i];
        const float area = l11 * l22, product = qxx * qyy - qxy * qxy;
        const float trace = (l11 * l11 + l21 * l21) * qxx + 2 * l21 * l22 * qxy + l22 * l22 * qyy;
        const float determinant = area * area * positive(product) + job->ridge * (positive(trace) + job->ridge);
        const float scaled = area / determinant, damping = job->ridge / determinant;
        xx[i] = scaled * (l22 * qyy + l21 * qxy) + damping * l11;
        yx[i] = damping * l21 - scaled * l11 * qxy;
        xy[i] = -scaled * (l22 * qxy + l21 * qxx);
        yy[i] = damping * l22 + scaled * l11 * qxx;
        drift_x[i] = m->kept[i] * (l11 * m->mean_x[i]);
        drift_y[i] = m->kept[i] * (l21 * m->mean_x[i] + l22 * m->mean_y[i]);
        each[i] = m->kept[i] / m->count[i];
    }
    EACH(i) {
        s->value[i] = 1;
        s->slope_x[i] = s->slope_y[i] = 0;
    }
    for (int64_t k = 1; k < job->samples; k++) {
        const float *part_x = m->x + k * BLOCK, *part_y = m->y + k * BLOCK, *in = inside + k * BLOCK;
        float *value = s->value + k * BLOCK, *slope_x = s->slope_x + k * BLOCK, *slope_y = s->slope_y + k * BLOCK;
        EACH(i) {
            const float x = xx[i] * part_x[i] + xy[i] * part_y[i], y = yx[i] * part_x[i] + yy[i] * part_y[i];
            value[i] = in[i] * each[i] - drift_x[i] * x - drift_y[i] * y;
            slope_x[i] = p->unit_x[i] * x;
            slope_y[i] = p->unit_y[i] * y;
            s->value[i] -= value[i];
            s->slope_x[i] -= slope_x[i];
            s->slope_y[i] -= slope_y[i];
        }
    }
}

/* Up to three planes of one image, pixel by pixel. A vector holds the four texels of one read; they are added up last,
 * four pixels at once. */
ALWAYS_INLINE void read_planes(const struct sample_job *job, const struct samples *s, const float *input, int n,
                               const int planes, const int intercept, float *value, float *slope)
{
    const int64_t plane = job->height * job->width, width = job->width, pixels = job->out_height * job->out_width;
    for (int i = 0; i < n; i += 4) {
        float4 sums[3][3][4];
        for (int j = 0; j < 4; j++) {
            float4 values[3] = {{0}}, slopes_x[3] = {{0}}, slopes_y[3] = {{0}};
            for (int64_t k = 0, at = i + j; k < job->samples; k++, at += BLOCK) {
                const float *texel = input + s->texel[at];
                const float4 tap = *(const float4 *)(s->tap + 4 * at);
                for (int c = 0; c < planes; c++) {
                    double above, below;
                    memcpy(&above, texel + c * plane, 8);
                    memcpy(&below, texel + c * plane + width, 8);
                    const float4 read = tap * (float4)(double2){above, below};
                    if (intercept)
                        values[c] += s->value[at] * read;
                    slopes_x[c] += s->slope_x[at] * read;
                    slopes_y[c] += s->slope_y[at] * read;
                }
            }
            for (int c = 0; c < planes; c++) {
                sums[c][0][j] = values[c];
                sums[c][1][j] = slopes_x[c];
                sums[c][2][j] = slopes_y[c];
            }
        }
        for (int c = 0; c < planes; c++) {
            const float4 v = sum4(sums[c][0]), x = sum4(sums[c][1]), y = sum4(sums[c][2]);
            const float4 pairs[2] = {SHUFFLE(x, y, 0, 4, 1, 5), SHUFFLE(x, y, 2, 6, 3, 7)};
            if (i + 4 <= n) {
                if (intercept)
                    memcpy(value + c * pixels + i, &v, 16);
                memcpy(slope + 2 * (c * pixels + i), pairs, 32);
            } else {
                if (intercept)
                    memcpy(value + c * pixels + i, &v, 4 * (n - i));
                memcpy(slope + 2 * (c * pixels + i), pairs, 8 * (n - i));
            }
        }
    }
}

/* Two to four planes of a small image, texel by texel, so that one load gets all. */
static void pack(const struct sample_job *job, const float *input, float *packed)
{
    const int64_t texels = job->height * job->width;
    const float *second = input + texels, *third = input + (job->channels > 2 ? 2 : 0) * texels;
    const float *fourth = input + (job->channels > 3 ? 3 : 0) * texels;
    INDEPENDENT for (int64_t i = 0; i < texels; i++) {
        packed[4 * i] = input[i];
        packed[4 * i + 1] = second[i];
        packed[4 * i + 2] = third[i];
        packed[4 * i + 3] = fourth[i];
    }
}

/* All channels of one packed image, four pixels at once. */
ALWAYS_INLINE void read_packed(const struct sample_job *job, const struct samples *s, const float *packed, int n,
                               const int intercept, float *value, float *slope)
{
    const int64_t down = 4 * job->width, pixels = job->out_height * job->out_width;
    for (int i = 0; i < n; i += 4) {
        float4 values[4], slopes_x[4], slopes_y[4];
        for (int j = 0; j < 4; j++) {
            float8 v = {0}, x = {0}, y = {0}; /* of the texels to the left, and of those to the right */
            for (int64_t k = 0, at = i + j; k < job->samples; k++, at += BLOCK) {
                const float *texel = packed + 4 * (int64_t)s->texel[at];
                const float8 tap = *(const float8 *)(s->tap + 4 * at);
                const float8 read = PERMUTE(tap, 0, 0, 0, 0, 1, 1, 1, 1) * *(const float8 *)texel
                    + PERMUTE(tap, 2, 2, 2, 2, 3, 3, 3, 3) * *(const float8 *)(texel + down);
                if (intercept)
                    v += s->value[at] * read;
                x += s->slope_x[at] * read;
                y += s->slope_y[at] * read;
            }
            values[j] = ((float4 *)&v)[0] + ((float4 *)&v)[1];
            slopes_x[j] = ((float4 *)&x)[0] + ((float4 *)&x)[1];
            slopes_y[j] = ((float4 *)&y)[0] + ((float4 *)&y)[1];
        }
        transpose(values);
        transpose(slopes_x);
        transpose(slopes_y);
        const int m = i + 4 <= n ? 4 : n - i;
        for (int64_t c = 0; c < job->channels; c++) {
            const float4 x = slopes_x[c], y = slopes_y[c];
            const float4 pairs[2] = {SHUFFLE(x, y, 0, 4, 1, 5), SHUFFLE(x, y, 2, 6, 3, 7)};
            if (m == 4) {
                if (intercept)
                    memcpy(value + c * pixels + i, values + c, 16);
                memcpy(slope + 2 * (c * pixels + i), pairs, 32);
            } else {
                if (intercept)
                    memcpy(value + c * pixels + i, values + c, 4 * m);
                memcpy(slope + 2 * (c * pixels + i), pairs, 8 * m);
            }
        }
    }
}

/* 8 channels of one image whose channels lie side by side. */
ALWAYS_INLINE void read_channels(const struct sample_job *job, const struct samples *s, const float *input, int n,
                                 const int intercept, float *value, float *slope)
{
    const int64_t right = job->channels, down = job->channels * job->width, pixels = job->out_height * job->out_width;
    float8 values[BLOCK], slopes_x[BLOCK], slopes_y[BLOCK];
    for (int i = 0; i < n; i++) {
        float8 v = {0}, x = {0}, y = {0};
        for (int64_t k = 0, at = i; k < job->samples; k++, at += BLOCK) {
            const float *texel = input + s->texel[at] * right, *tap = s->tap + 4 * at;
            const float8 read = tap[0] * *(const float8 *)texel
                + tap[1] * *(const float8 *)(texel + right) + tap[2] * *(const float8 *)(texel + down)
                + tap[3] * *(const float8 *)(texel + down + right);
            if (intercept)
                v += s->value[at] * read;
            x += s->slope_x[at] * read;
            y += s->slope_y[at] * read;
        }
        values[i] = v;
        slopes_x[i] = x;
        slopes_y[i] = y;
    }
    for (int c = 0; c < 8; c++, value += pixels, slope += 2 * pixels)
        for (int i = 0; i < n; i++) {
            if (intercept)
                value[i] = values[i][c];
            slope[2 * i] = slopes_x[i][c];
            slope[2 * i + 1] = slopes_y[i][c];
        }
}

ALWAYS_INLINE void read(const struct sample_job *job, const struct samples *s, const float *packed, int64_t image,
                        int64_t first, int n, const int intercept)
{
    const int64_t pixels = job->out_height * job->out_width, channels = job->channels;
    const float *input = job->input + image * job->next_input;
    float *value = job->value + image * channels * pixels + first;
    float *slope = job->slope + 2 * (image * channels * pixels + first);
    if (packed)
        read_packed(job, s, packed, n, intercept, value, slope);
    else if (job->channels_last)
        for (int64_t c = 0; c < channels; c += 8) {
            if (c + 8 > channels)
                c = channels - 8; /* the last ones once more, together with those before */
            read_channels(job, s, input + c, n, intercept, value + c * pixels, slope + 2 * c * pixels);
        }
    else
        for (int64_t c = 0; c < channels;) {
            const float *plane = input + c * job->height * job->width;
            if (c + 3 <= channels) {
                read_planes(job, s, plane, n, 3, intercept, value + c * pixels, slope + 2 * c * pixels);
                c += 3;
            } else {
                read_planes(job, s, plane, n, 1, intercept, value + c * pixels, slope + 2 * c * pixels);
                c++;
            }
        }
}

/* A thread's share: blocks of pixels, each for a few images in turn. */
void sample(struct sample_job *job)
{
    const int64_t pixels = job->out_height * job->out_width, blocks = (pixels + BLOCK - 1) / BLOCK;
    const int64_t groups = (job->batch + TOGETHER - 1) / TOGETHER, items = groups * blocks;
    const int64_t plane = job->samples * BLOCK;
    struct pixels p;
    struct samples s;
    struct moments all, some; /* of all draws, and of those inside */

    /* An image that many samples read, and that the cache holds, is packed by every thread that reads it. So a thread
     * takes whole groups of images where there are enough of them. Whether an image is packed must not depend on the
     * threads, since it changes the order of a sum. */
    const int64_t grain = groups >= 4 * job->threads ? blocks : GRAIN;
    const int64_t texels = job->height * job->width, packed_image = 4 * texels;
    const int to_pack = !job->channels_last && job->channels >= 2 && job->channels <= 4 && texels <= LARGEST_PACKED
        && pixels * job->samples >= 4 * texels;
    int64_t in_pack = -1;

    float *memory = aligned_alloc(64, (16 * plane + 16) * sizeof(float)), *next = memory;
    float *packed = to_pack ? aligned_alloc(64, (TOGETHER * packed_image * sizeof(float) + 63) / 64 * 64) : NULL;
    if (!memory || (to_pack && !packed)) {
        free(memory);
        free(packed);
        job->out_of_memory = 1;
        return;
    }
    float **parts[] = {&s.noise_x, &s.noise_y, &s.inside, &s.value, &s.slope_x, &s.slope_y,
                       &all.x,     &all.y,     &some.x,   &some.y};
    for (int i = 0; i < 10; i++, next += plane)
        *parts[i] = next;
    s.texel = (int32_t *)next;
    float *ones = next + plane;
    s.tap = ones + plane;
    for (int64_t i = 0; i < plane; i++)
        ones[i] = 1;

    for (;;) {
        const int64_t begin = __atomic_fetch_add(&job->taken, grain, __ATOMIC_RELAXED);
        const int64_t end = begin + grain < items ? begin + grain : items;
        if (begin >= items)
            break;
        for (int64_t item = begin; item < end; item++) {
            const int64_t first = item % blocks * BLOCK, begin_image = item / blocks * TOGETHER;
            const int64_t end_image = begin_image + TOGETHER < job->batch ? begin_image + TOGETHER : job->batch;
            const int n = pixels - first < BLOCK ? pixels - first : BLOCK;
            if (to_pack && in_pack != begin_image) {
                in_pack = begin_image;
                for (int64_t image = begin_image; image < end_image; image++)
                    pack(job, job->input + image * job->next_input, packed + (image - begin_image) * packed_image);
            }
            for (int64_t image = begin_image; image < end_image; image++) {
                if (image == begin_image || job->next_noise) {
                    load(job, image, first, n, &s);
                    if (job->to_whiten)
                        whiten(job, &s);
                    sum(job, &s, ones, &all);
                }
                locate(job, image, first, &p);
                if (place(job, &p, &s)) {
                    sum(job, &s, s.inside, &some);
                    fit(job, &p, &some, s.inside, &s);
                } else
                    fit(job, &p, &all, ones, &s);
                const float *mine = to_pack ? packed + (image - begin_image) * packed_image : NULL;
                if (job->intercept)
                    read(job, &s, mine, image, first, n, 1);
                else
                    read(job, &s, mine, image, first, n, 0);
            }
        }
    }
    free(memory);
    free(packed);
}

/* The grid's gradient: at every pixel the sum over the channels of slope times gradient. */
void gradient(struct gradient_job *job)
{
    const int64_t blocks = (job->pixels + BLOCK - 1) / BLOCK, items = job->batch * blocks;
    for (;;) {
        const int64_t begin = __atomic_fetch_add(&job->taken, GRAIN, __ATOMIC_RELAXED);
        const int64_t end = begin + GRAIN < items ? begin + GRAIN : items;
        if (begin >= items)
            break;
        for (int64_t item = begin; item < end; item++) {
            const int64_t image = item / blocks, first = item % blocks * BLOCK;
            const int n = job->pixels - first < BLOCK ? job->pixels - first : BLOCK;
            float x[BLOCK] = {0}, y[BLOCK] = {0};
            for (int64_t c = 0; c < job->channels; c++) {
                const int64_t at = (image * job->channels + c) * job->pixels + first;
                const float *value = job->value_gradient + at, *slope = job->slope + 2 * at;
                INDEPENDENT for (int i = 0; i < n; i++) {
                    x[i] += value[i] * slope[2 * i];
                    y[i] += value[i] * slope[2 * i + 1];
                }
            }
            float *out = job->grid_gradient + 2 * (image * job->pixels + first);
            for (int i = 0; i < n; i++) {
                out[2 * i] = x[i];
                out[2 * i + 1] = y[i];
            }
        }
    }
}
