/* The jobs of the threads: a search for areas, the means, and the gradients. */

#define area_search NAME(area_search)
#define area_mean NAME(area_mean)
#define area_sum_edges NAME(area_sum_edges)
#define area_find_reads NAME(area_find_reads)
#define area_block_gradient NAME(area_block_gradient)
#define area_keep NAME(area_keep)
#define area_give_jacobians NAME(area_give_jacobians)
#define area_collect NAME(area_collect)
#define area_gradient NAME(area_gradient)
#define area_slopes NAME(area_slopes)
#define area_image_gradient NAME(area_image_gradient)

/* A thread's share of the search for a pixel with an area, and, as long as there is none, for an unusable point. Most
 * blocks need a quick look only: a stretch is at most that of the image's mean steps plus twice the largest difference
 * from these. */
void area_search(struct area_job *job)
{
    const int64_t pixels = job->out_height * job->out_width, blocks = (pixels + BLOCK - 1) / BLOCK;
    const int64_t items = job->batch * blocks;
    const int may_share = !job->jacobian || !job->pixel_stride;
    struct work w;
    w.shared.image = -1;
    while (!__atomic_load_n(&job->any_area, __ATOMIC_RELAXED)) {
        const int64_t begin = __atomic_fetch_add(&job->taken, SEARCH_GRAIN, __ATOMIC_RELAXED);
        const int64_t end = begin + SEARCH_GRAIN < items ? begin + SEARCH_GRAIN : items;
        if (begin >= items)
            break;
        for (int64_t item = begin; item < end; item++) {
            const int64_t image = item / blocks, first = item % blocks * BLOCK;
            float copy[2 * BLOCK];
            const float *here = area_points(job->grid + image * job->grid_stride, pixels, first, copy);
            if (may_share && w.shared.image != image) {
                area_share(job, image, &w.shared);
                const float largest = (w.shared.areas.p[0] + w.shared.areas.m[0]) / 2; /* stretch, times the side */
                area_tolerate(job, positive(job->limit - largest) / (2 * job->side), &w.shared.steps);
            }
            if (may_share && !w.shared.areas.shrinks && area_repeats(job, image, first, here, &w.shared.steps))
                continue;
            if (!job->jacobian && area_is_plain(job, image, first))
                continue;
            area_jacobian(job, image, first, &w.own);
            if (!w.own.usable)
                __atomic_store_n(&job->any_unusable, 1, __ATOMIC_RELAXED);
            if (area_stretch(job, &w.own)) {
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
    struct work w;
    struct nodes n;
    w.shared.image = -1;
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
            const struct areas *a = area_locate(job, image, first, &w);
            any_unusable |= !a->usable;
            if (!a->shrinks) {
                memset(job->plain + image * pixels + first, 1, pixels_here);
                any_plain = 1;
                continue;
            }
            EACH(i) plain[i] = a->extent_1[i] == 0;
            memcpy(job->plain + image * pixels + first, plain, pixels_here);
            any_plain |= memchr(plain, 1, pixels_here) != NULL;
            if (a->all_outside) {
                for (int64_t c = 0; c < job->channels; c++)
                    memset(job->value + (image * job->channels + c) * pixels + first, 0, 4 * pixels_here);
                continue;
            }
            area_nodes(a, &n);
            area_pad(job, &n, 0);
            const int rows = area_windows(job, &n);
            if (rows == 3)
                area_read(job, &n, a->outside, image, first, pixels_here, 3);
            else if (rows == 4)
                area_read(job, &n, a->outside, image, first, pixels_here, 4);
            else
                area_read(job, &n, a->outside, image, first, pixels_here, 2);
        }
    }
    if (any_plain)
        __atomic_store_n(&job->any_plain, 1, __ATOMIC_RELAXED);
    if (any_unusable)
        __atomic_store_n(&job->any_unusable, 1, __ATOMIC_RELAXED);
    free(n.x);
}

/* What the edges of a block say, but for the values. */
ALWAYS_INLINE void area_sum_edges(const struct area_job *job, struct nodes *n, const struct areas *a, int64_t image,
                                  int64_t first, int pixels_here, const int rows, struct edges *e)
{
    area_contract(job, n, a->outside, image, first, pixels_here, rows);
    if (a->narrow)
        area_combine(n, rows, 1, a, e);
    else
        area_combine(n, rows, 0, a, e);
}

/* The reads of a block's gradients: those on the edges, or those of the centres where nothing shrinks. Returns the
 * number of rows of a window. */
static int area_find_reads(const struct area_job *job, const struct areas *a, struct nodes *n)
{
    if (a->shrinks)
        area_edges(a, n);
    else
        area_centres(a, n);
    area_pad(job, n, !a->shrinks || a->narrow);
    return area_windows(job, n);
}

/* The gradients of a block, for the centres and for the Jacobians, from reads in windows of so many rows. */
static void area_block_gradient(const struct area_job *job, const struct areas *a, struct nodes *n, int rows,
                                int64_t image, int64_t first, int pixels_here, float *x, float *y, float *by_jacobian)
{
    const int64_t pixels = job->out_height * job->out_width;
    struct edges e;
    if (!a->shrinks) {
        memset(by_jacobian, 0, 4 * BLOCK * sizeof(float));
        area_contract(job, n, a->outside, image, first, pixels_here, 2);
        area_combine(n, 2, 1, a, &e);
        memcpy(x, e.texels[0], sizeof e.texels[0]);
        memcpy(y, e.texels[1], sizeof e.texels[1]);
        return;
    }
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
    area_differentiate(job, a, &e, x, y, by_jacobian);
}

/* Keep what a block gives to the centres of its pixels, and, where Jacobians are differences, to the ends of the steps
 * they are: of x and y in turn, to the next pixel, to the one before, and to those a row below and above. A pixel is
 * itself an end of its steps. `to` is the block's place in the first of 10 arrays of so many numbers. */
static void area_keep(const struct area_job *job, const struct areas *a, const float *x, const float *y,
                      const float *by_jacobian, float *to, int64_t most)
{
    const float *xx = by_jacobian, *xy = xx + BLOCK, *yx = xy + BLOCK, *yy = yx + BLOCK;
    const int has_columns = job->out_width > 1, has_rows = job->out_height > 1;
    EACH(i) {
        to[i] = x[i];
        to[most + i] = y[i];
    }
    if (job->jacobian)
        return;
    EACH(i) {
        const float after = has_columns & a->after_x[i], before = has_columns & !a->after_x[i];
        const float below = has_rows & a->after_y[i], above = has_rows & !a->after_y[i];
        to[i] += (before - after) * xx[i] + (above - below) * xy[i];
        to[most + i] += (before - after) * yx[i] + (above - below) * yy[i];
        to[2 * most + i] = after * xx[i];
        to[3 * most + i] = after * yx[i];
        to[4 * most + i] = before * xx[i];
        to[5 * most + i] = before * yx[i];
        to[6 * most + i] = below * xy[i];
        to[7 * most + i] = below * yy[i];
        to[8 * most + i] = above * xy[i];
        to[9 * most + i] = above * yy[i];
    }
}

/* The gradient for the grid of some pixels, from what they and their neighbours keep. No pixel keeps anything for one
 * beyond the end of its row, so that rows may follow each other. */
static void area_collect(const struct area_job *job, const float *kept, int64_t most, int64_t pixels, const float *grid,
                         float *out)
{
    const float half_x = area_half(job, job->width), half_y = area_half(job, job->height);
    const int64_t width = job->out_width;
    const float *x = kept, *y = x + most, *after_x = y + most, *after_y = after_x + most, *before_x = after_y + most;
    const float *before_y = before_x + most, *below_x = before_y + most, *below_y = below_x + most;
    const float *above_x = below_y + most, *above_y = above_x + most;
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

/* The gradients for the Jacobians of a block: written, or added to the total of those that share one Jacobian. */
static void area_give_jacobians(const struct area_job *job, const float *by_jacobian, int64_t pixel, int pixels_here,
                                double *total)
{
    for (int t = 0; t < 4; t++) {
        const float *given = by_jacobian + t * BLOCK;
        float sum_here = 0;
        if (job->pixel_stride)
            for (int i = 0; i < pixels_here; i++)
                job->jacobian_gradient[4 * (pixel + i) + t] = given[i];
        else
            for (int i = 0; i < pixels_here; i++)
                sum_here += given[i];
        total[t] += sum_here;
    }
}

/* A thread's share of the gradients for grid and Jacobian: pieces of an image, some rows of output pixels each. Where
 * the Jacobians are differences, a piece also works out the rows before and after, which may keep something for it. */
void area_gradient(struct area_job *job)
{
    const int64_t height = job->out_height, width = job->out_width, pixels = height * width;
    const int64_t pieces = (height + job->rows - 1) / job->rows, items = job->batch * pieces;
    const int64_t halo = job->jacobian ? 0 : 1, most = (job->rows + 2 * halo) * width + 2 * BLOCK + 2;
    const int arrays = job->jacobian ? 2 : 10;
    struct work w;
    struct nodes n;
    w.shared.image = -1;
    if (!area_allocate(job, &n))
        return;
    float *kept = malloc(arrays * most * sizeof(float));
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
        /* Blocks begin at the same pixels in all pieces, so that a pixel has the same Jacobian in each. */
        const int64_t extra = halo && row > 0 ? (row - 1) * width % BLOCK : 0;
        const int64_t begin = (row > 0 ? row - halo : 0) * width - extra;
        const int64_t end = (end_row < height ? end_row + halo : height) * width;
        float *mine = kept + BLOCK + 1 + halo * width; /* the place of the first pixel of `row` */
        double total[4] = {0};
        for (int64_t first = begin; first < end; first += BLOCK) {
            const int pixels_here = end - first < BLOCK ? end - first : BLOCK;
            float x[BLOCK], y[BLOCK], by_jacobian[4 * BLOCK];
            const struct areas *a = area_locate(job, image, first, &w);
            if (a->all_outside) {
                memset(x, 0, sizeof x);
                memset(y, 0, sizeof y);
                memset(by_jacobian, 0, sizeof by_jacobian);
            } else {
                const int rows = area_find_reads(job, a, &n);
                area_block_gradient(job, a, &n, rows, image, first, pixels_here, x, y, by_jacobian);
            }
            area_keep(job, a, x, y, by_jacobian, mine + first - row * width, most);
            if (job->jacobian)
                area_give_jacobians(job, by_jacobian, image * pixels + first, pixels_here, total);
        }
        /* Rows outside the image keep nothing. */
        for (int t = 2; t < arrays; t++) {
            if (row == 0)
                memset(mine + t * most - width - 1, 0, (width + 1) * sizeof(float));
            if (end_row == height)
                memset(mine + t * most + (end_row - row) * width, 0, (width + 1) * sizeof(float));
        }
        area_collect(job, mine, most, (end_row - row) * width, job->grid + image * job->grid_stride + 2 * row * width,
                     job->grid_gradient + 2 * (image * pixels + row * width));
        if (job->jacobian && !job->pixel_stride)
            for (int t = 0; t < 4; t++)
                job->jacobian_gradient[4 * item + t] = total[t];
    }
    free(n.x);
    free(kept);
}

/* A thread's share of the slopes: blocks of pixels, whose Jacobians are given. A slope is what a gradient of 1 for one
 * channel gives. */
void area_slopes(struct area_job *job)
{
    const int64_t pixels = job->out_height * job->out_width, blocks = (pixels + BLOCK - 1) / BLOCK;
    const int64_t items = job->batch * blocks, plane = job->height * job->width;
    const float half_x = area_half(job, job->width), half_y = area_half(job, job->height);
    float ones[BLOCK];
    struct area_job one = *job; /* a block of one channel, as an image of its own */
    struct work w;
    struct nodes n;
    w.shared.image = -1;
    if (!area_allocate(job, &n))
        return;
    EACH(i) ones[i] = 1;
    one.channels = 1;
    one.value_gradient = ones;
    for (;;) {
        const int64_t begin = __atomic_fetch_add(&job->taken, GRAIN, __ATOMIC_RELAXED);
        const int64_t end = begin + GRAIN < items ? begin + GRAIN : items;
        if (begin >= items)
            break;
        for (int64_t item = begin; item < end; item++) {
            const int64_t image = item / blocks, first = item % blocks * BLOCK;
            const int pixels_here = pixels - first < BLOCK ? pixels - first : BLOCK;
            const float *point = job->grid + image * job->grid_stride + 2 * first;
            const struct areas *a = area_locate(job, image, first, &w);
            const int rows = a->all_outside ? 0 : area_find_reads(job, a, &n);
            for (int64_t c = 0; c < job->channels; c++) {
                const int64_t at = (image * job->channels + c) * pixels + first;
                float *slope = job->grid_gradient + 2 * at, *by_matrix = job->jacobian_gradient + 4 * at;
                if (a->all_outside) {
                    memset(slope, 0, 2 * pixels_here * sizeof(float));
                    memset(by_matrix, 0, 4 * pixels_here * sizeof(float));
                    continue;
                }
                float x[BLOCK], y[BLOCK], by_jacobian[4 * BLOCK];
                one.input = job->input + image * job->input_stride + c * plane;
                one.value = job->value + at;
                area_block_gradient(&one, a, &n, rows, 0, 0, pixels_here, x, y, by_jacobian);
                for (int i = 0; i < pixels_here; i++) {
                    slope[2 * i] = fabsf(point[2 * i]) <= FAR_OUTSIDE ? x[i] * half_x : 0;
                    slope[2 * i + 1] = fabsf(point[2 * i + 1]) <= FAR_OUTSIDE ? y[i] * half_y : 0;
                    for (int t = 0; t < 4; t++)
                        by_matrix[4 * i + t] = by_jacobian[t * BLOCK + i];
                }
            }
        }
    }
    free(n.x);
}

/* A thread's share of the gradient for the image: some channels of an image, so that no two threads add to a texel. */
void area_image_gradient(struct area_job *job)
{
    const int64_t pixels = job->out_height * job->out_width, plane = job->height * job->width;
    const int64_t parts = (job->channels + job->together - 1) / job->together, items = job->batch * parts;
    struct work w;
    struct nodes n;
    w.shared.image = -1;
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
            const struct areas *a = area_locate(job, image, first, &w);
            if (a->all_outside)
                continue;
            if (a->shrinks)
                area_nodes(a, &n);
            else
                area_centres(a, &n);
            area_pad(job, &n, 0);
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
