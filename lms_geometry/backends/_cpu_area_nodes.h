/* Where the nodes of the areas are, and the windows of texels they are read from. */

#define area_allocate NAME(area_allocate)
#define area_node NAME(area_node)
#define area_nodes NAME(area_nodes)
#define area_edges NAME(area_edges)
#define area_centres NAME(area_centres)
#define area_reflect NAME(area_reflect)
#define area_pad NAME(area_pad)
#define area_windows NAME(area_windows)

/* Memory for the nodes of a block, to be freed at `x`. */
static int area_allocate(struct area_job *job, struct nodes *n)
{
    const int64_t count = job->count * job->count > 4 * job->count ? job->count * job->count : 4 * job->count;
    const int64_t plane = count * BLOCK, texels = (4 * count > WINDOW * WINDOW ? 4 * count : WINDOW * WINDOW) * BLOCK;
    float *next = aligned_alloc(64, (9 * plane + 2 * texels + 16) * sizeof(float));
    n->x = next;
    if (!next) {
        job->out_of_memory = 1;
        return 0;
    }
    float **parts[] = {&n->x, &n->y, &n->rate_x, &n->rate_y, &n->weight, &n->moment, &n->column, &n->row};
    for (int i = 0; i < 8; i++, next += plane)
        *parts[i] = next;
    n->texel = (int32_t *)next;
    n->of_texel = next + plane;
    n->by_pixel = n->of_texel + texels;
    return 1;
}

/* Node k of the rule along an axis: its position in the unit square, and its weight. */
ALWAYS_INLINE void area_node(const struct rule *rule, int k, int i, float *position, float *weight)
{
    const int last = rule->count - 1;
    *position = k == 0 ? -rule->outer[i] : k == last ? rule->outer[i] : (k + 0.5f) / rule->count - 0.5f;
    *weight = k == 0 || k == last ? rule->weight[i] : rule->inner[i];
}

/* The nodes of the mean over the areas. */
static void area_nodes(const struct areas *a, struct nodes *n)
{
    n->count = a->along_x.count * a->along_y.count;
    for (int k = 0; k < n->count; k++) {
        float *x = n->x + k * BLOCK, *y = n->y + k * BLOCK, *weight = n->weight + k * BLOCK;
        const int column = k % a->along_x.count, row = k / a->along_x.count;
        EACH(i) {
            float at_x, weight_x, at_y, weight_y;
            area_node(&a->along_x, column, i, &at_x, &weight_x);
            area_node(&a->along_y, row, i, &at_y, &weight_y);
            x[i] = a->x[i] + a->xx[i] * at_x + a->xy[i] * at_y;
            y[i] = a->y[i] + a->yx[i] * at_x + a->yy[i] * at_y;
            weight[i] = weight_x * weight_y;
        }
    }
}

/* The nodes of the edges: of the low and of the high edge across the first axis, then of those across the second. */
static void area_edges(const struct areas *a, struct nodes *n)
{
    int k = 0;
    for (int axis = 0; axis < 2; axis++) {
        const struct rule *along = axis == 0 ? &a->along_y : &a->along_x;
        const float *across_x = axis == 0 ? a->xx : a->xy, *across_y = axis == 0 ? a->yx : a->yy;
        const float *along_x = axis == 0 ? a->xy : a->xx, *along_y = axis == 0 ? a->yy : a->yx;
        for (int high = 0; high < 2; high++)
            for (int j = 0; j < along->count; j++, k++) {
                float *x = n->x + k * BLOCK, *y = n->y + k * BLOCK;
                float *weight = n->weight + k * BLOCK, *moment = n->moment + k * BLOCK;
                const float offset = high - 0.5f;
                EACH(i) {
                    float at, share;
                    area_node(along, j, i, &at, &share);
                    x[i] = a->x[i] + across_x[i] * offset + along_x[i] * at;
                    y[i] = a->y[i] + across_y[i] * offset + along_y[i] * at;
                    weight[i] = share;
                    moment[i] = along->moment[i] * share * at;
                }
            }
    }
    n->count = k;
}

/* The centres alone, as the only nodes. */
static void area_centres(const struct areas *a, struct nodes *n)
{
    n->count = 1;
    EACH(i) {
        n->x[i] = a->x[i];
        n->y[i] = a->y[i];
        n->weight[i] = 1;
        n->moment[i] = 0;
    }
}

/* Mirror a block of coordinates at the ends of the image until they are inside, and note which run backwards then. */
static void area_reflect(float *x, float *rate, float last, float shift)
{
    const float period = 2 * (last + 2 * shift);
    float turns[BLOCK];
    EACH(i) turns[i] = clamp(fabsf(x[i] + shift) / period, 0, 1e9f);
    EACH(i) {
        const float from_end = x[i] + shift, rest = fabsf(from_end) - (int32_t)turns[i] * period;
        const int back = period - rest < rest;
        x[i] = (back ? period - rest : rest) - shift;
        rate[i] = (from_end < 0) != back ? -1 : 1;
    }
}

/* Bring the nodes into the image, unless its surroundings are 0, and note how fast they then move, if that matters. */
static void area_pad(const struct area_job *job, struct nodes *n, int moving)
{
    const float last_x = job->width - 1, last_y = job->height - 1, shift = job->align_corners ? 0 : 0.5f;
    for (int k = 0; k < n->count; k++) {
        float *x = n->x + k * BLOCK, *y = n->y + k * BLOCK;
        float *rate_x = n->rate_x + k * BLOCK, *rate_y = n->rate_y + k * BLOCK;
        if (moving)
            EACH(i) rate_x[i] = rate_y[i] = 1;
        if (job->padding == ZEROS)
            continue;
        if (job->padding == REFLECTION) {
            area_reflect(x, rate_x, last_x, shift);
            area_reflect(y, rate_y, last_y, shift);
        }
        EACH(i) {
            x[i] = clamp(x[i], 0, last_x);
            y[i] = clamp(y[i], 0, last_y);
        }
        if (moving)
            EACH(i) {
                rate_x[i] = (x[i] > 0) & (x[i] < last_x) ? rate_x[i] : 0;
                rate_y[i] = (y[i] > 0) & (y[i] < last_y) ? rate_y[i] : 0;
            }
    }
}

/* Choose the windows of texels that the nodes are read from. A texel that a node does not reach, or that is outside,
 * has the weight 0 there. Returns the number of rows of a window. */
static int area_windows(const struct area_job *job, struct nodes *n)
{
    float low_x[BLOCK], low_y[BLOCK], high_x[BLOCK], high_y[BLOCK];
    int wide = 0, high = 0;
    EACH(i) {
        low_x[i] = high_x[i] = n->x[i];
        low_y[i] = high_y[i] = n->y[i];
    }
    for (int k = 1; k < n->count; k++) {
        const float *x = n->x + k * BLOCK, *y = n->y + k * BLOCK;
        EACH(i) {
            low_x[i] = x[i] < low_x[i] ? x[i] : low_x[i];
            low_y[i] = y[i] < low_y[i] ? y[i] : low_y[i];
            high_x[i] = x[i] > high_x[i] ? x[i] : high_x[i];
            high_y[i] = y[i] > high_y[i] ? y[i] : high_y[i];
        }
    }
    for (int i = 0; i < BLOCK; i++) {
        const float span_x = high_x[i] - low_x[i], span_y = high_y[i] - low_y[i];
        wide |= (span_x > LARGEST_SPAN) | (span_y > LARGEST_SPAN);
        high |= span_y > LARGEST_SPAN - 1;
    }
    const int one = n->count > 1 && !wide && job->width >= WINDOW && job->height >= WINDOW;
    const int rows = one ? high ? WINDOW : WINDOW - 1 : 2;
    const int32_t width = job->width;
    const float last_x = job->width - (one ? WINDOW : 2), last_y = job->height - rows;
    n->windows = one ? 1 : n->count;
    for (int k = 0; k < n->windows; k++) {
        const float *x = one ? low_x : n->x + k * BLOCK, *y = one ? low_y : n->y + k * BLOCK;
        float *column = n->column + k * BLOCK, *row = n->row + k * BLOCK;
        int32_t *texel = n->texel + k * BLOCK;
        EACH(i) {
            column[i] = clamp(x[i], 0, last_x);
            row[i] = clamp(y[i], 0, last_y);
        }
        EACH(i) {
            const int32_t column_here = column[i], row_here = row[i];
            column[i] = column_here;
            row[i] = row_here;
            texel[i] = row_here * width + column_here;
        }
    }
    return rows;
}
