/* Reading the nodes of the areas, and the jobs of the threads. Everything is linear in the texels, so a pixel's nodes are
 * read from squares of texels (area_squares): the value is a weighted sum over each square, and a gradient first sums
 * gradient times intensity over the channels, texel by texel, and then reads its nodes from that. */

#define area_allocate NAME(area_allocate)
#define area_row NAME(area_row)
#define area_tents NAME(area_tents)
#define area_weigh NAME(area_weigh)
#define area_tent_slope NAME(area_tent_slope)
#define area_read_planes NAME(area_read_planes)
#define area_read NAME(area_read)
#define area_contract NAME(area_contract)
#define area_combine NAME(area_combine)
#define area_scatter NAME(area_scatter)
#define area_search NAME(area_search)
#define area_mean NAME(area_mean)
#define area_block_gradient NAME(area_block_gradient)
#define area_gather NAME(area_gather)
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
    float **parts[] = {&n->x, &n->y, &n->turn_x, &n->turn_y, &n->weight, &n->moment, &n->column, &n->row};
    for (int i = 0; i < 8; i++, next += plane)
        *parts[i] = next;
    n->texel = (int32_t *)next;
    n->of_texel = next + plane;
    n->by_pixel = n->of_texel + texels;
    return 1;
}

/* Four texels of a square: a row of a window, or the whole of a square of 2 x 2. */
ALWAYS_INLINE float4 area_row(const float *texel, int64_t width, const int side, int row)
{
    float4 read;
    if (side == WINDOW)
        memcpy(&read, texel + row * width, 16);
    else {
        double above, below;
        memcpy(&above, texel, 8);
        memcpy(&below, texel + width, 8);
        read = (float4)(double2){above, below};
    }
    return read;
}

/* The weights of the texels in the means over the areas, texel by texel and pixel by pixel. */
ALWAYS_INLINE void area_weigh(struct nodes *n, const int side)
{
    for (int square = 0; square < n->squares; square++) {
        const int begin = side == WINDOW ? 0 : square, end = side == WINDOW ? n->count : square + 1;
        const float *column = n->column + square * BLOCK, *row = n->row + square * BLOCK;
        float *weights = n->of_texel + square * side * side * BLOCK;
        for (int k = begin; k < end; k++) {
            const float *x = n->x + k * BLOCK, *y = n->y + k * BLOCK, *weight = n->weight + k * BLOCK;
            const float kept = k == begin ? 0 : 1;
            EACH(i) {
                float along_x[WINDOW], along_y[WINDOW];
                UNROLLED for (int c = 0; c < side; c++) {
                    along_x[c] = tent(x[i] - column[i] - c);
                    along_y[c] = weight[i] * tent(y[i] - row[i] - c);
                }
                UNROLLED for (int r = 0; r < side; r++)
                    UNROLLED for (int c = 0; c < side; c++) {
                        float *sum_here = weights + (r * side + c) * BLOCK + i;
                        *sum_here = (kept ? *sum_here : 0) + along_y[r] * along_x[c];
                    }
            }
        }
        for (int i = 0; i < BLOCK; i += 4)
            for (int r = 0; r < side * side; r += 4) {
                float4 turned[4];
                for (int t = 0; t < 4; t++)
                    memcpy(turned + t, weights + (r + t) * BLOCK + i, 16);
                transpose(turned);
                for (int j = 0; j < 4; j++)
                    memcpy(n->by_pixel + (square * BLOCK + i + j) * side * side + r, turned + j, 16);
            }
    }
}

/* The values of a block, in a few planes at once. */
ALWAYS_INLINE void area_read_planes(const struct area_job *job, const struct nodes *n, const float *input, int pixels_here,
                                    const int side, const int planes, float *value)
{
    const int64_t plane = job->height * job->width, width = job->width, pixels = job->out_height * job->out_width;
    for (int i = 0; i < pixels_here; i += 4) {
        float4 sums[PLANES_AT_ONCE][4];
        for (int j = 0; j < 4; j++) {
            float4 values[PLANES_AT_ONCE] = {{0}};
            for (int64_t square = 0, at = i + j; square < n->squares; square++, at += BLOCK) {
                const float *texel = input + n->texel[at], *weights = n->by_pixel + at * side * side;
                UNROLLED for (int r = 0; r < side * side / 4; r++) {
                    float4 weight;
                    memcpy(&weight, weights + 4 * r, 16);
                    for (int c = 0; c < planes; c++)
                        values[c] += weight * area_row(texel + c * plane, width, side, r);
                }
            }
            for (int c = 0; c < planes; c++)
                sums[c][j] = values[c];
        }
        for (int c = 0; c < planes; c++) {
            const float4 four = sum4(sums[c]);
            memcpy(value + c * pixels + i, &four, i + 4 <= pixels_here ? 16 : 4 * (pixels_here - i));
        }
    }
}

ALWAYS_INLINE void area_read(const struct area_job *job, struct nodes *n, int64_t image, int64_t first, int pixels_here,
                             const int side)
{
    const int64_t pixels = job->out_height * job->out_width, channels = job->channels, plane = job->height * job->width;
    const float *input = job->input + image * job->next_input;
    float *value = job->value + image * channels * pixels + first;
    area_weigh(n, side);
    int64_t c = 0;
    for (; c + PLANES_AT_ONCE <= channels; c += PLANES_AT_ONCE)
        area_read_planes(job, n, input + c * plane, pixels_here, side, PLANES_AT_ONCE, value + c * pixels);
    for (; c < channels; c++)
        area_read_planes(job, n, input + c * plane, pixels_here, side, 1, value + c * pixels);
}

/* Gradient times intensity, summed over the channels, of every texel of the squares. */
ALWAYS_INLINE void area_contract(const struct area_job *job, struct nodes *n, int64_t image, int64_t first,
                                 int pixels_here, const int side)
{
    const int64_t pixels = job->out_height * job->out_width, plane = job->height * job->width, width = job->width;
    const float *input = job->input + image * job->next_input;
    const float *given = job->value_gradient + image * job->channels * pixels + first;
    for (int64_t channel = 0; channel < job->channels; channel += CHANNELS_AT_ONCE) {
        const int together = job->channels - channel < CHANNELS_AT_ONCE ? job->channels - channel : CHANNELS_AT_ONCE;
        float weights[CHANNELS_AT_ONCE][BLOCK] = {{0}};
        for (int c = 0; c < together; c++)
            memcpy(weights[c], given + (channel + c) * pixels, 4 * pixels_here);
        for (int square = 0; square < n->squares; square++)
            for (int i = 0; i < pixels_here; i += 4) {
                const int32_t *texel = n->texel + square * BLOCK + i;
                float *sums = n->of_texel + square * side * side * BLOCK + i;
                float4 four[WINDOW][4] = {{{0}}};
                for (int c = 0; c < together; c++)
                    UNROLLED for (int j = 0; j < 4; j++) {
                        const float *at = input + (channel + c) * plane + texel[j];
                        const float weight = weights[c][i + j];
                        UNROLLED for (int r = 0; r < side * side / 4; r++)
                            four[r][j] += weight * area_row(at, width, side, r);
                    }
                UNROLLED for (int r = 0; r < side * side / 4; r++) {
                    transpose(four[r]);
                    UNROLLED for (int t = 0; t < 4; t++) {
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

/* How a bilinear read changes with the distance to a texel. At a texel it is the derivative to the right. */
ALWAYS_INLINE float area_tent_slope(float distance)
{
    return (distance >= -1) & (distance < 1) ? (distance < 0 ? 1 : -1) : 0;
}

/* Read the nodes of the edges from the contracted texels, and add them up. With one node only, a centre, it is all about
 * texel differences. */
ALWAYS_INLINE void area_combine(const struct area_job *job, const struct nodes *n, const int side, const int narrow,
                                const struct areas *a, struct edges *e)
{
    const float last_x = job->width - 1, last_y = job->height - 1;
    const int reflection = job->padding == REFLECTION, inside_only = job->padding != ZEROS;
    const int one = n->count == 1, along_y = 2 * a->along_y.count, per_edge_0 = a->along_y.count;
    const int per_edge_1 = a->along_x.count;
    memset(e, 0, sizeof *e);
    for (int k = 0; k < n->count; k++) {
        const int square = side == WINDOW ? 0 : k, axis = !one && k >= along_y;
        const int high = axis ? (k - along_y) / per_edge_1 : k / (one ? 1 : per_edge_0);
        const float *x = n->x + k * BLOCK, *y = n->y + k * BLOCK;
        const float *column = n->column + square * BLOCK, *row = n->row + square * BLOCK;
        const float *sums = n->of_texel + square * side * side * BLOCK;
        const float *weight = n->weight + k * BLOCK, *moment = n->moment + k * BLOCK;
        const float *turn_x = n->turn_x + k * BLOCK, *turn_y = n->turn_y + k * BLOCK;
        const float sign = high ? 1 : -1, share = one ? 1 : 0.25f;
        float *difference = e->difference[axis], *grown = e->grown[axis], *turned = e->turned[axis];
        EACH(i) {
            float rows[WINDOW], row_slopes[WINDOW], read_here = 0, slope_x = 0, slope_y = 0;
            UNROLLED for (int r = 0; r < side; r++)
                rows[r] = row_slopes[r] = 0;
            UNROLLED for (int c = 0; c < side; c++) {
                const float distance = x[i] - column[i] - c;
                UNROLLED for (int r = 0; r < side; r++) {
                    rows[r] += tent(distance) * sums[(r * side + c) * BLOCK + i];
                    if (narrow)
                        row_slopes[r] += area_tent_slope(distance) * sums[(r * side + c) * BLOCK + i];
                }
            }
            UNROLLED for (int r = 0; r < side; r++) {
                const float distance = y[i] - row[i] - r;
                read_here += tent(distance) * rows[r];
                if (narrow) {
                    slope_x += tent(distance) * row_slopes[r];
                    slope_y += area_tent_slope(distance) * rows[r];
                }
            }
            difference[i] += sign * weight[i] * read_here;
            grown[i] += 0.5f * weight[i] * read_here;
            turned[i] += sign * moment[i] * read_here;
            if (narrow) {
                const int fixed_x = inside_only & !((x[i] > 0) & (x[i] < last_x));
                const int fixed_y = inside_only & !((y[i] > 0) & (y[i] < last_y));
                e->texels[0][i] += fixed_x ? 0 : share * weight[i] * slope_x * (reflection ? turn_x[i] : 1);
                e->texels[1][i] += fixed_y ? 0 : share * weight[i] * slope_y * (reflection ? turn_y[i] : 1);
            }
        }
    }
}

/* Add gradient times weight to the texels of the squares, in a few planes at once. Pixels that follow each other share
 * texels, and a processor waits for a store that a load half overlaps. So pixels far from each other take turns. */
ALWAYS_INLINE void area_scatter(const struct area_job *job, const struct nodes *n, const float *given, float *image,
                                int together, int pixels_here, const int side)
{
    const int64_t plane = job->height * job->width, width = job->width, pixels = job->out_height * job->out_width;
    float weights[CHANNELS_AT_ONCE][BLOCK] = {{0}};
    for (int c = 0; c < together; c++)
        memcpy(weights[c], given + c * pixels, 4 * pixels_here);
    for (int turn = 0; turn < BLOCK; turn++) {
        const int i = turn % 4 * (BLOCK / 4) + turn / 4;
        if (i >= pixels_here)
            continue;
        for (int64_t square = 0, at = i; square < n->squares; square++, at += BLOCK) {
            float *texel = image + n->texel[at];
            float4 by_row[WINDOW];
            memcpy(by_row, n->by_pixel + at * side * side, 4 * side * side);
            for (int c = 0; c < together; c++) {
                const float weight = weights[c][i];
                UNROLLED for (int r = 0; r < side * side / 4; r++) {
                    float *to = texel + c * plane + r * width;
                    const float4 sum_here = area_row(texel + c * plane, width, side, r) + weight * by_row[r];
                    if (side == WINDOW)
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
    int any_plain = 0;
    for (;;) {
        const int64_t begin = __atomic_fetch_add(&job->taken, GRAIN, __ATOMIC_RELAXED);
        const int64_t end = begin + GRAIN < items ? begin + GRAIN : items;
        if (begin >= items)
            break;
        for (int64_t item = begin; item < end; item++) {
            const int64_t image = item / blocks, first = item % blocks * BLOCK;
            const int pixels_here = pixels - first < BLOCK ? pixels - first : BLOCK;
            uint8_t plain[BLOCK];
            if (!area_locate(job, image, first, &a)) {
                memset(job->plain + image * pixels + first, 1, pixels_here);
                any_plain = 1;
                continue;
            }
            EACH(i) plain[i] = a.extent_1[i] == 0;
            memcpy(job->plain + image * pixels + first, plain, pixels_here);
            any_plain |= memchr(plain, 1, pixels_here) != NULL;
            area_nodes(&a, &n);
            area_pad(job, &n);
            if (area_squares(job, &n) == WINDOW)
                area_read(job, &n, image, first, pixels_here, WINDOW);
            else
                area_read(job, &n, image, first, pixels_here, 2);
        }
    }
    if (any_plain)
        __atomic_store_n(&job->any_plain, 1, __ATOMIC_RELAXED);
    free(n.x);
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
        area_squares(job, n);
        area_contract(job, n, image, first, pixels_here, 2);
        area_combine(job, n, 2, 1, a, &e);
        memcpy(x, e.texels[0], sizeof e.texels[0]);
        memcpy(y, e.texels[1], sizeof e.texels[1]);
        memset(by_jacobian, 0, 4 * BLOCK * sizeof(float));
        return;
    }
    area_edges(a, n);
    area_pad(job, n);
    if (area_squares(job, n) == WINDOW) {
        area_contract(job, n, image, first, pixels_here, WINDOW);
        if (a->narrow)
            area_combine(job, n, WINDOW, 1, a, &e);
        else
            area_combine(job, n, WINDOW, 0, a, &e);
    } else {
        area_contract(job, n, image, first, pixels_here, 2);
        if (a->narrow)
            area_combine(job, n, 2, 1, a, &e);
        else
            area_combine(job, n, 2, 0, a, &e);
    }
    for (int64_t c = 0; c < job->channels; c++) {
        const int64_t at = (image * job->channels + c) * pixels + first;
        const float *value = job->value + at, *given = job->value_gradient + at;
        INDEPENDENT for (int i = 0; i < pixels_here; i++) {
            e.grown[0][i] -= value[i] * given[i];
            e.grown[1][i] -= value[i] * given[i];
        }
    }
    area_slopes(job, a, &e, x, y, by_jacobian);
}

/* What reaches a pixel's coordinates through the differences along one axis: of its own Jacobian and of those of its two
 * neighbours that are differences to it. */
ALWAYS_INLINE float area_gather(const float *by_jacobian, const uint8_t *after, int64_t next, int has_before, int has_after)
{
    float sum_here = *after ? -*by_jacobian : *by_jacobian;
    if (has_before && after[-next])
        sum_here += by_jacobian[-next];
    if (has_after && !after[next])
        sum_here -= by_jacobian[next];
    return sum_here;
}

/* A thread's share of the gradients for grid and Jacobian: pieces of an image, some rows of output pixels each. Where the
 * Jacobian is made of differences, a piece also looks at the rows before and after. */
void area_gradient(struct area_job *job)
{
    const int64_t height = job->out_height, width = job->out_width, pixels = height * width;
    const int64_t pieces = (height + job->rows - 1) / job->rows, items = job->batch * pieces;
    const int64_t most = (job->rows + 2 < height ? job->rows + 2 : height) * width;
    const float half_x = area_half(job, job->width), half_y = area_half(job, job->height);
    struct areas a;
    struct nodes n;
    if (!area_allocate(job, &n))
        return;
    float *kept = NULL;
    if (!job->jacobian) {
        kept = malloc(most * (6 * sizeof(float) + 2));
        if (!kept) {
            free(n.x);
            job->out_of_memory = 1;
            return;
        }
    }
    uint8_t *after_x = (uint8_t *)(kept + 6 * most), *after_y = after_x + most;
    for (;;) {
        const int64_t item = __atomic_fetch_add(&job->taken, 1, __ATOMIC_RELAXED);
        if (item >= items)
            break;
        const int64_t image = item / pieces, row = item % pieces * job->rows;
        const int64_t end_row = row + job->rows < height ? row + job->rows : height;
        const int64_t begin = (job->jacobian || row == 0 ? row : row - 1) * width;
        const int64_t end = (job->jacobian || end_row == height ? end_row : end_row + 1) * width;
        float *out = job->grid_gradient + 2 * image * pixels;
        double total[4] = {0};
        for (int64_t first = begin; first < end; first += BLOCK) {
            const int m = end - first < BLOCK ? end - first : BLOCK;
            float x[BLOCK], y[BLOCK], by_jacobian[4 * BLOCK];
            area_block_gradient(job, &a, &n, image, first, m, x, y, by_jacobian);
            EACH(i) {
                x[i] *= a.unit_x[i];
                y[i] *= a.unit_y[i];
            }
            if (!job->jacobian) {
                const int64_t at = first - begin;
                memcpy(kept + at, x, 4 * m);
                memcpy(kept + most + at, y, 4 * m);
                for (int t = 0; t < 4; t++)
                    memcpy(kept + (2 + t) * most + at, by_jacobian + t * BLOCK, 4 * m);
                for (int i = 0; i < m; i++) {
                    after_x[at + i] = a.after_x[i];
                    after_y[at + i] = a.after_y[i];
                }
                continue;
            }
            for (int i = 0; i < m; i++) {
                out[2 * (first + i)] = x[i];
                out[2 * (first + i) + 1] = y[i];
            }
            if (job->next_pixel)
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
        }
        if (job->jacobian) {
            if (!job->next_pixel)
                for (int t = 0; t < 4; t++)
                    job->jacobian_gradient[4 * item + t] = total[t];
            continue;
        }
        for (int64_t r = row; r < end_row; r++)
            for (int64_t c = 0; c < width; c++) {
                const int64_t at = r * width + c - begin;
                const float *grid = job->grid + image * job->next_grid + 2 * (r * width + c);
                float x = 0, y = 0;
                if (width > 1) {
                    x += area_gather(kept + 2 * most + at, after_x + at, 1, c > 0, c + 1 < width);
                    y += area_gather(kept + 4 * most + at, after_x + at, 1, c > 0, c + 1 < width);
                }
                if (height > 1) {
                    x += area_gather(kept + 3 * most + at, after_y + at, width, r > 0, r + 1 < height);
                    y += area_gather(kept + 5 * most + at, after_y + at, width, r > 0, r + 1 < height);
                }
                out[2 * (r * width + c)] = kept[at] + (fabsf(grid[0]) <= FAR_OUTSIDE ? x * half_x : 0);
                out[2 * (r * width + c) + 1] = kept[most + at] + (fabsf(grid[1]) <= FAR_OUTSIDE ? y * half_y : 0);
            }
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
            const int side = area_squares(job, &n);
            if (side == WINDOW)
                area_weigh(&n, WINDOW);
            else
                area_weigh(&n, 2);
            for (int64_t c = begin; c < end; c += CHANNELS_AT_ONCE) {
                const int together = end - c < CHANNELS_AT_ONCE ? end - c : CHANNELS_AT_ONCE;
                const float *given = job->value_gradient + (image * job->channels + c) * pixels + first;
                float *out = job->image_gradient + (image * job->channels + c) * plane;
                if (side == WINDOW)
                    area_scatter(job, &n, given, out, together, m, WINDOW);
                else
                    area_scatter(job, &n, given, out, together, m, 2);
            }
        }
    }
    free(n.x);
}
