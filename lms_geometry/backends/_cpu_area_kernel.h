/* Reading the nodes of the areas, and the jobs of the threads. Everything is linear in the texels, so a pixel's nodes are
 * read from windows of texels (area_windows): the value is a weighted sum over each window, and a gradient first sums
 * gradient times intensity over the channels, texel by texel, and then reads its nodes from that. */

#define area_allocate NAME(area_allocate)
#define area_row NAME(area_row)
#define area_tents NAME(area_tents)
#define area_add_weights NAME(area_add_weights)
#define area_weigh NAME(area_weigh)
#define area_tent_slope NAME(area_tent_slope)
#define area_read_planes NAME(area_read_planes)
#define area_read NAME(area_read)
#define area_contract NAME(area_contract)
#define area_add_nodes NAME(area_add_nodes)
#define area_combine NAME(area_combine)
#define area_sum_edges NAME(area_sum_edges)
#define area_scatter NAME(area_scatter)
#define area_search NAME(area_search)
#define area_mean NAME(area_mean)
#define area_block_gradient NAME(area_block_gradient)
#define area_collect NAME(area_collect)
#define area_gradient NAME(area_gradient)
#define area_image_gradient NAME(area_image_gradient)

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

/* Texels in a row of a window of so many rows. */
#define COLUMNS(rows) ((rows) == 2 ? 2 : WINDOW)

/* Four texels of a window: a row of it, or the whole of one of 2 x 2. */
ALWAYS_INLINE float4 area_row(const float *texel, int64_t width, const int rows, int row)
{
    float4 read;
    if (rows > 2)
        memcpy(&read, texel + row * width, 16);
    else {
        double above, below;
        memcpy(&above, texel, 8);
        memcpy(&below, texel + width, 8);
        read = (float4)(double2){above, below};
    }
    return read;
}

/* Add a few nodes' weights to those of the texels of a window, or put them there. */
ALWAYS_INLINE void area_add_weights(const struct nodes *n, int first, int window, const int rows, const int nodes,
                                    const int add)
{
    const float *x = n->x + first * BLOCK, *y = n->y + first * BLOCK, *weight = n->weight + first * BLOCK;
    const float *column = n->column + window * BLOCK, *row = n->row + window * BLOCK;
    float *weights = n->of_texel + window * rows * COLUMNS(rows) * BLOCK;
    EACH(i) {
        float along_x[4][WINDOW], along_y[4][WINDOW];
        for (int k = 0; k < nodes; k++) {
            for (int c = 0; c < COLUMNS(rows); c++)
                along_x[k][c] = tent(x[k * BLOCK + i] - column[i] - c);
            for (int r = 0; r < rows; r++)
                along_y[k][r] = weight[k * BLOCK + i] * tent(y[k * BLOCK + i] - row[i] - r);
        }
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < COLUMNS(rows); c++) {
                float *to = weights + (r * COLUMNS(rows) + c) * BLOCK + i;
                float total = add ? *to : 0;
                for (int k = 0; k < nodes; k++)
                    total += along_y[k][r] * along_x[k][c];
                *to = total;
            }
    }
}

/* The weights of the texels in the means over the areas, those of a pixel rows by rows. */
ALWAYS_INLINE void area_weigh(struct nodes *n, const int rows)
{
    for (int window = 0; window < n->windows; window++) {
        if (rows > 2) {
            area_add_weights(n, 0, 0, rows, 4, 0);
            int k = 4;
            for (; k + 4 <= n->count; k += 4)
                area_add_weights(n, k, 0, rows, 4, 1);
            for (; k < n->count; k++)
                area_add_weights(n, k, 0, rows, 1, 1);
        } else
            area_add_weights(n, window, window, rows, 1, 0);
        for (int i = 0; i < BLOCK; i += 4)
            for (int r = 0; r < rows * COLUMNS(rows); r += 4) {
                float4 turned[4];
                for (int t = 0; t < 4; t++)
                    memcpy(turned + t, n->of_texel + (window * rows * COLUMNS(rows) + r + t) * BLOCK + i, 16);
                transpose(turned);
                for (int j = 0; j < 4; j++)
                    memcpy(n->by_pixel + (window * BLOCK + i + j) * rows * COLUMNS(rows) + r, turned + j, 16);
            }
    }
}

/* The values of a block, in a few planes at once. */
ALWAYS_INLINE void area_read_planes(const struct area_job *job, const struct nodes *n, const float *input, int pixels_here,
                                    const int rows, const int planes, float *value)
{
    const int64_t plane = job->height * job->width, width = job->width, pixels = job->out_height * job->out_width;
    const int windows = rows > 2 ? 1 : n->windows;
    for (int i = 0; i < pixels_here; i += 4) {
        float4 sums[PLANES_AT_ONCE][4];
        for (int j = 0; j < 4; j++) {
            float4 values[PLANES_AT_ONCE] = {{0}};
            for (int64_t window = 0, at = i + j; window < windows; window++, at += BLOCK) {
                const float *texel = input + n->texel[at], *weights = n->by_pixel + at * rows * COLUMNS(rows);
                for (int r = 0; r < rows * COLUMNS(rows) / 4; r++) {
                    float4 weight;
                    memcpy(&weight, weights + 4 * r, 16);
                    for (int c = 0; c < planes; c++)
                        values[c] += weight * area_row(texel + c * plane, width, rows, r);
                }
            }
            for (int c = 0; c < planes; c++)
                sums[c][j] = values[c];
        }
        for (int c = 0; c < planes; c++) {
            const float4 four = sum4(sums[c]);
            if (i + 4 <= pixels_here)
                memcpy(value + c * pixels + i, &four, 16);
            else
                memcpy(value + c * pixels + i, &four, 4 * (pixels_here - i));
        }
    }
}

ALWAYS_INLINE void area_read(const struct area_job *job, struct nodes *n, int64_t image, int64_t first, int pixels_here,
                             const int rows)
{
    const int64_t pixels = job->out_height * job->out_width, channels = job->channels, plane = job->height * job->width;
    const float *input = job->input + image * job->next_input;
    float *value = job->value + image * channels * pixels + first;
    area_weigh(n, rows);
    int64_t c = 0;
    for (; c + PLANES_AT_ONCE <= channels; c += PLANES_AT_ONCE)
        area_read_planes(job, n, input + c * plane, pixels_here, rows, PLANES_AT_ONCE, value + c * pixels);
    for (; c < channels; c++)
        area_read_planes(job, n, input + c * plane, pixels_here, rows, 1, value + c * pixels);
}

/* Gradient times intensity, summed over the channels, of every texel of the windows. */
ALWAYS_INLINE void area_contract(const struct area_job *job, struct nodes *n, int64_t image, int64_t first,
                                 int pixels_here, const int rows)
{
    const int64_t pixels = job->out_height * job->out_width, plane = job->height * job->width, width = job->width;
    const float *input = job->input + image * job->next_input;
    const float *given = job->value_gradient + image * job->channels * pixels + first;
    for (int64_t channel = 0; channel < job->channels; channel += CHANNELS_AT_ONCE) {
        const int together = job->channels - channel < CHANNELS_AT_ONCE ? job->channels - channel : CHANNELS_AT_ONCE;
        const float *weights[CHANNELS_AT_ONCE];
        float last[CHANNELS_AT_ONCE][BLOCK]; /* of the last block of an image, which may be a part of one */
        for (int c = 0; c < together; c++) {
            weights[c] = given + (channel + c) * pixels;
            if (pixels_here < BLOCK)
                weights[c] = memcpy(memset(last[c], 0, sizeof last[c]), weights[c], 4 * pixels_here);
        }
        for (int window = 0; window < n->windows; window++)
            for (int i = 0; i < pixels_here; i += 4) {
                const int32_t *texel = n->texel + window * BLOCK + i;
                float *sums = n->of_texel + window * rows * COLUMNS(rows) * BLOCK + i;
                float4 four[WINDOW][4] = {{{0}}};
                for (int c = 0; c < together; c++)
                    for (int j = 0; j < 4; j++) {
                        const float *at = input + (channel + c) * plane + texel[j];
                        const float weight = weights[c][i + j];
                        for (int r = 0; r < rows * COLUMNS(rows) / 4; r++)
                            four[r][j] += weight * area_row(at, width, rows, r);
                    }
                for (int r = 0; r < rows * COLUMNS(rows) / 4; r++) {
                    transpose(four[r]);
                    for (int t = 0; t < 4; t++) {
                        float4 sum_here = {0};
                        if (channel > 0)
                            memcpy(&sum_here, sums + (4 * r + t) * BLOCK, 16);
                        sum_here += four[r][t];
                        memcpy(sums + (4 * r + t) * BLOCK, &sum_here, 16);
                    }
                }
            }
    }
}

/* How the weight of a texel changes with the place of a bilinear read; at a texel, to the right. */
ALWAYS_INLINE float area_tent_slope(float place_here, int texel)
{
    const int before = (place_here >= texel - 1) & (place_here < texel);
    const int after = (place_here >= texel) & (place_here < texel + 1);
    return before - after;
}

/* Read a few nodes of one axis's edges from the contracted texels, and add them up. Those of the low edge come first. */
ALWAYS_INLINE void area_add_nodes(const struct nodes *n, int first, int low, int axis,
                                  const int rows, const int nodes, const int narrow, struct edges *e)
{
    const float share = n->count == 1 ? 1 : 0.25f;
    const int window = rows > 2 ? 0 : first;
    const float *x = n->x + first * BLOCK, *y = n->y + first * BLOCK;
    const float *weight = n->weight + first * BLOCK, *moment = n->moment + first * BLOCK;
    const float *rate_x = n->rate_x + first * BLOCK, *rate_y = n->rate_y + first * BLOCK;
    const float *column = n->column + window * BLOCK, *row = n->row + window * BLOCK;
    const float *sums = n->of_texel + window * rows * COLUMNS(rows) * BLOCK;
    float *difference = e->difference[axis], *grown = e->grown[axis], *turned = e->turned[axis];
    float *texels_x = e->texels[0], *texels_y = e->texels[1];
    EACH(i) {
        float change = 0, mean = 0, turn = 0, slope_x = 0, slope_y = 0;
        for (int k = 0; k < nodes; k++) {
            const float x_here = x[k * BLOCK + i], y_here = y[k * BLOCK + i], weight_here = weight[k * BLOCK + i];
            const float place_x = x_here - column[i], place_y = y_here - row[i];
            const float sign = k < low ? -1 : 1;
            float read_here = 0, read_x = 0, read_y = 0;
            for (int r = 0; r < rows; r++) {
                float along = 0, along_slope = 0;
                for (int c = 0; c < COLUMNS(rows); c++) {
                    const float texel = sums[(r * COLUMNS(rows) + c) * BLOCK + i];
                    along += tent(place_x - c) * texel;
                    if (narrow)
                        along_slope += area_tent_slope(place_x, c) * texel;
                }
                read_here += tent(place_y - r) * along;
                if (narrow) {
                    read_x += tent(place_y - r) * along_slope;
                    read_y += area_tent_slope(place_y, r) * along;
                }
            }
            mean += weight_here * read_here;
            change += sign * (weight_here * read_here);
            turn += sign * (moment[k * BLOCK + i] * read_here);
            if (narrow) {
                slope_x += weight_here * read_x * rate_x[k * BLOCK + i];
                slope_y += weight_here * read_y * rate_y[k * BLOCK + i];
            }
        }
        difference[i] += change;
        grown[i] += mean / 2;
        turned[i] += turn;
        if (narrow) {
            texels_x[i] += share * slope_x;
            texels_y[i] += share * slope_y;
        }
    }
}

/* The sums over all nodes. Where there is one only, the centre, texel differences are all there is. */
ALWAYS_INLINE void area_combine(const struct nodes *n, const int rows, const int narrow,
                                const struct areas *a, struct edges *e)
{
    memset(e, 0, sizeof *e);
    if (n->count == 1) {
        area_add_nodes(n, 0, 0, 0, rows, 1, narrow, e);
        return;
    }
    for (int axis = 0, k = 0; axis < 2; axis++) {
        const int count = axis == 0 ? a->along_y.count : a->along_x.count;
        if (rows > 2 && count == 2 && !narrow) {
            area_add_nodes(n, k, 2, axis, rows, 4, narrow, e);
            k += 4;
        } else
            for (int j = 0; j < 2 * count; j++, k++)
                area_add_nodes(n, k, j < count, axis, rows, 1, narrow, e);
    }
}

/* Add gradient times weight to the texels of the windows, in a few planes at once. Pixels that follow each other share
 * texels, and a processor waits for a store that a load half overlaps. So pixels far from each other take turns. */
ALWAYS_INLINE void area_scatter(const struct area_job *job, const struct nodes *n, const float *given, float *image,
                                int together, int pixels_here, const int rows)
{
    const int64_t plane = job->height * job->width, width = job->width, pixels = job->out_height * job->out_width;
    float weights[CHANNELS_AT_ONCE][BLOCK] = {{0}};
    for (int c = 0; c < together; c++)
        memcpy(weights[c], given + c * pixels, 4 * pixels_here);
    for (int turn = 0; turn < BLOCK; turn++) {
        const int i = turn % 4 * (BLOCK / 4) + turn / 4;
        if (i >= pixels_here)
            continue;
        for (int64_t window = 0, at = i; window < n->windows; window++, at += BLOCK) {
            float *texel = image + n->texel[at];
            float4 by_row[WINDOW];
            memcpy(by_row, n->by_pixel + at * rows * COLUMNS(rows), 4 * rows * COLUMNS(rows));
            for (int c = 0; c < together; c++) {
                const float weight = weights[c][i];
                for (int r = 0; r < rows * COLUMNS(rows) / 4; r++) {
                    float *to = texel + c * plane + r * width;
                    const float4 sum_here = area_row(texel + c * plane, width, rows, r) + weight * by_row[r];
                    if (rows > 2)
                        memcpy(to, &sum_here, 16);
                    else {
                        memcpy(to, &sum_here, 8);
                        memcpy(to + width, (const float *)&sum_here + 2, 8);
                    }
                }
            }
        }
    }
}

/* A thread's share of the search for a pixel with an area, and, as long as there is none, for an unusable point. */
void area_search(struct area_job *job)
{
    const int64_t pixels = job->out_height * job->out_width, blocks = (pixels + BLOCK - 1) / BLOCK;
    const int64_t items = job->batch * blocks;
    struct areas a;
    while (!__atomic_load_n(&job->any_area, __ATOMIC_RELAXED)) {
        const int64_t begin = __atomic_fetch_add(&job->taken, SEARCH_GRAIN, __ATOMIC_RELAXED);
        const int64_t end = begin + SEARCH_GRAIN < items ? begin + SEARCH_GRAIN : items;
        if (begin >= items)
            break;
        for (int64_t item = begin; item < end; item++) {
            if (!job->jacobian && area_is_plain(job, item / blocks, item % blocks * BLOCK))
                continue;
            area_jacobian(job, item / blocks, item % blocks * BLOCK, &a);
            if (!area_usable(&a))
                __atomic_store_n(&job->any_unusable, 1, __ATOMIC_RELAXED);
            if (area_stretch(job, &a)) {
                __atomic_store_n(&job->any_area, 1, __ATOMIC_RELAXED);
                break;
            }
        }
    }
}

/* A thread's share of the means: blocks of pixels. Those of pixels without area are left to grid_sample. */
void area_mean(struct area_job *job)
{
    const int64_t pixels = job->out_height * job->out_width, blocks = (pixels + BLOCK - 1) / BLOCK;
    const int64_t items = job->batch * blocks;
    struct areas a;
    struct nodes n;
    if (!area_allocate(job, &n))
        return;
    int any_plain = 0, any_unusable = 0;
    for (;;) {
        const int64_t begin = __atomic_fetch_add(&job->taken, GRAIN, __ATOMIC_RELAXED);
        const int64_t end = begin + GRAIN < items ? begin + GRAIN : items;
        if (begin >= items)
            break;
        for (int64_t item = begin; item < end; item++) {
            const int64_t image = item / blocks, first = item % blocks * BLOCK;
            const int pixels_here = pixels - first < BLOCK ? pixels - first : BLOCK;
            uint8_t plain[BLOCK];
            const int shrinks = area_locate(job, image, first, &a);
            for (int i = 0; i < BLOCK; i++)
                any_unusable |= (a.unit_x[i] == 0) | (a.unit_y[i] == 0);
            if (!shrinks) {
                memset(job->plain + image * pixels + first, 1, pixels_here);
                any_plain = 1;
                continue;
            }
            EACH(i) plain[i] = a.extent_1[i] == 0;
            memcpy(job->plain + image * pixels + first, plain, pixels_here);
            any_plain |= memchr(plain, 1, pixels_here) != NULL;
            area_nodes(&a, &n);
            area_pad(job, &n);
            const int rows = area_windows(job, &n);
            if (rows == 3)
                area_read(job, &n, image, first, pixels_here, 3);
            else if (rows == 4)
                area_read(job, &n, image, first, pixels_here, 4);
            else
                area_read(job, &n, image, first, pixels_here, 2);
        }
    }
    if (any_plain)
        __atomic_store_n(&job->any_plain, 1, __ATOMIC_RELAXED);
    if (any_unusable)
        __atomic_store_n(&job->any_unusable, 1, __ATOMIC_RELAXED);
    free(n.x);
}

ALWAYS_INLINE void area_sum_edges(const struct area_job *job, struct nodes *n, const struct areas *a, int64_t image,
                                  int64_t first, int pixels_here, const int rows, struct edges *e)
{
    area_contract(job, n, image, first, pixels_here, rows);
    if (a->narrow)
        area_combine(n, rows, 1, a, e);
    else
        area_combine(n, rows, 0, a, e);
}

/* The gradients of a block, for the centres and for the Jacobians. */
static void area_block_gradient(const struct area_job *job, struct areas *a, struct nodes *n, int64_t image, int64_t first,
                                int pixels_here, float *x, float *y, float *by_jacobian)
{
    const int64_t pixels = job->out_height * job->out_width;
    struct edges e;
    if (!area_locate(job, image, first, a)) {
        area_centres(a, n);
        area_pad(job, n);
        area_windows(job, n);
        area_contract(job, n, image, first, pixels_here, 2);
        area_combine(n, 2, 1, a, &e);
        memcpy(x, e.texels[0], sizeof e.texels[0]);
        memcpy(y, e.texels[1], sizeof e.texels[1]);
        memset(by_jacobian, 0, 4 * BLOCK * sizeof(float));
        return;
    }
    area_edges(a, n);
    area_pad(job, n);
    const int rows = area_windows(job, n);
    if (rows == 3)
        area_sum_edges(job, n, a, image, first, pixels_here, 3, &e);
    else if (rows == 4)
        area_sum_edges(job, n, a, image, first, pixels_here, 4, &e);
    else
        area_sum_edges(job, n, a, image, first, pixels_here, 2, &e);
    float product[BLOCK] = {0};
    for (int64_t c = 0; c < job->channels; c++) {
        const int64_t at = (image * job->channels + c) * pixels + first;
        const float *value = job->value + at, *given = job->value_gradient + at;
        if (pixels_here == BLOCK)
            EACH(i) product[i] += value[i] * given[i];
        else
            for (int i = 0; i < pixels_here; i++)
                product[i] += value[i] * given[i];
    }
    EACH(i) {
        e.grown[0][i] -= product[i];
        e.grown[1][i] -= product[i];
    }
    area_slopes(job, a, &e, x, y, by_jacobian);
}

/* The gradient for the grid of some pixels: what reaches a pixel as the centre, and, where Jacobians are differences, as an
 * end of its neighbours' steps. `kept` has NAME_KEPT numbers a pixel, `most` pixels each. */
static void area_collect(const struct area_job *job, const float *kept, int64_t most, int64_t pixels, const float *grid,
                         float *out)
{
    const float half_x = area_half(job, job->width), half_y = area_half(job, job->height);
    const int64_t width = job->out_width;
    const float *x = kept, *y = kept + most;
    const float *after_x = kept + 2 * most, *after_y = kept + 3 * most, *before_x = kept + 4 * most;
    const float *before_y = kept + 5 * most, *below_x = kept + 6 * most, *below_y = kept + 7 * most;
    const float *above_x = kept + 8 * most, *above_y = kept + 9 * most;
    if (job->jacobian)
        INDEPENDENT for (int64_t i = 0; i < pixels; i++) {
            out[2 * i] = fabsf(grid[2 * i]) <= FAR_OUTSIDE ? x[i] * half_x : 0;
            out[2 * i + 1] = fabsf(grid[2 * i + 1]) <= FAR_OUTSIDE ? y[i] * half_y : 0;
        }
    else
        INDEPENDENT for (int64_t i = 0; i < pixels; i++) {
            const float all_x = x[i] + after_x[i - 1] - before_x[i + 1] + below_x[i - width] - above_x[i + width];
            const float all_y = y[i] + after_y[i - 1] - before_y[i + 1] + below_y[i - width] - above_y[i + width];
            out[2 * i] = fabsf(grid[2 * i]) <= FAR_OUTSIDE ? all_x * half_x : 0;
            out[2 * i + 1] = fabsf(grid[2 * i + 1]) <= FAR_OUTSIDE ? all_y * half_y : 0;
        }
}

/* A thread's share of the gradients for grid and Jacobian: pieces of an image, some rows of output pixels each. Where the
 * Jacobian is made of differences, a piece also works out the rows before and after. */
void area_gradient(struct area_job *job)
{
    const int64_t height = job->out_height, width = job->out_width, pixels = height * width;
    const int64_t pieces = (height + job->rows - 1) / job->rows, items = job->batch * pieces;
    const int64_t halo = job->jacobian ? 0 : 1, most = ((job->rows + 2 * halo) * width + BLOCK + 15) / 16 * 16;
    struct areas a;
    struct nodes n;
    if (!area_allocate(job, &n))
        return;
    float *kept = calloc((job->jacobian ? 2 : 10) * most + 2, sizeof(float));
    if (!kept) {
        free(n.x);
        job->out_of_memory = 1;
        return;
    }
    for (;;) {
        const int64_t item = __atomic_fetch_add(&job->taken, 1, __ATOMIC_RELAXED);
        if (item >= items)
            break;
        const int64_t image = item / pieces, row = item % pieces * job->rows;
        const int64_t end_row = row + job->rows < height ? row + job->rows : height;
        /* Place 1 of `kept` is for the first pixel of the row before `row`. Rows outside the image keep zeros. */
        const int64_t origin = (row - halo) * width, begin = row > 0 ? origin : 0;
        const int64_t end = (end_row < height ? end_row + halo : end_row) * width;
        double total[4] = {0};
        if (halo && row == 0)
            for (int t = 2; t < 10; t++)
                memset(kept + 1 + t * most, 0, 4 * width);
        for (int64_t first = begin; first < end; first += BLOCK) {
            const int m = end - first < BLOCK ? end - first : BLOCK;
            float *to = kept + 1 + first - origin, x[BLOCK], y[BLOCK], by_jacobian[4 * BLOCK];
            area_block_gradient(job, &a, &n, image, first, m, x, y, by_jacobian);
            const float *xx = by_jacobian, *xy = xx + BLOCK, *yx = xy + BLOCK, *yy = yx + BLOCK;
            if (!job->jacobian) {
                EACH(i) {
                    const float after = (width > 1) & a.after_x[i], before = (width > 1) & !a.after_x[i];
                    const float below = (height > 1) & a.after_y[i], above = (height > 1) & !a.after_y[i];
                    x[i] += (before - after) * xx[i] + (above - below) * xy[i];
                    y[i] += (before - after) * yx[i] + (above - below) * yy[i];
                    to[2 * most + i] = after * xx[i];
                    to[3 * most + i] = after * yx[i];
                    to[4 * most + i] = before * xx[i];
                    to[5 * most + i] = before * yx[i];
                    to[6 * most + i] = below * xy[i];
                    to[7 * most + i] = below * yy[i];
                    to[8 * most + i] = above * xy[i];
                    to[9 * most + i] = above * yy[i];
                }
            } else if (job->next_pixel)
                for (int i = 0; i < m; i++)
                    for (int t = 0; t < 4; t++)
                        job->jacobian_gradient[4 * (image * pixels + first + i) + t] = by_jacobian[t * BLOCK + i];
            else
                for (int t = 0; t < 4; t++) {
                    float sum_here = 0;
                    for (int i = 0; i < m; i++)
                        sum_here += by_jacobian[t * BLOCK + i];
                    total[t] += sum_here;
                }
            EACH(i) {
                to[i] = x[i];
                to[most + i] = y[i];
            }
        }
        if (halo && end_row == height)
            for (int t = 2; t < 10; t++)
                memset(kept + 1 + t * most + end - origin, 0, 4 * width);
        if (job->jacobian && !job->next_pixel)
            for (int t = 0; t < 4; t++)
                job->jacobian_gradient[4 * item + t] = total[t];
        area_collect(job, kept + 1 + halo * width, most, (end_row - row) * width,
                     job->grid + image * job->next_grid + 2 * row * width,
                     job->grid_gradient + 2 * (image * pixels + row * width));
    }
    free(n.x);
    free(kept);
}

/* A thread's share of the gradient for the image: some channels of an image, so that no two threads add to one texel. */
void area_image_gradient(struct area_job *job)
{
    const int64_t pixels = job->out_height * job->out_width, plane = job->height * job->width;
    const int64_t parts = (job->channels + job->together - 1) / job->together, items = job->batch * parts;
    struct areas a;
    struct nodes n;
    if (!area_allocate(job, &n))
        return;
    for (;;) {
        const int64_t item = __atomic_fetch_add(&job->taken, 1, __ATOMIC_RELAXED);
        if (item >= items)
            break;
        const int64_t image = item / parts, begin = item % parts * job->together;
        const int64_t end = begin + job->together < job->channels ? begin + job->together : job->channels;
        for (int64_t first = 0; first < pixels; first += BLOCK) {
            const int m = pixels - first < BLOCK ? pixels - first : BLOCK;
            if (area_locate(job, image, first, &a))
                area_nodes(&a, &n);
            else
                area_centres(&a, &n);
            area_pad(job, &n);
            const int rows = area_windows(job, &n);
            if (rows == 3)
                area_weigh(&n, 3);
            else if (rows == 4)
                area_weigh(&n, 4);
            else
                area_weigh(&n, 2);
            for (int64_t c = begin; c < end; c += CHANNELS_AT_ONCE) {
                const int together = end - c < CHANNELS_AT_ONCE ? end - c : CHANNELS_AT_ONCE;
                const float *given = job->value_gradient + (image * job->channels + c) * pixels + first;
                float *out = job->image_gradient + (image * job->channels + c) * plane;
                if (rows == 3)
                    area_scatter(job, &n, given, out, together, m, 3);
                else if (rows == 4)
                    area_scatter(job, &n, given, out, together, m, 4);
                else
                    area_scatter(job, &n, given, out, together, m, 2);
            }
        }
    }
    free(n.x);
}
