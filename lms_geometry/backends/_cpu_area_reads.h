/* Reading the nodes. All is linear in the texels, so a pixel's nodes are read from windows of texels (area_windows):
 * the value is a weighted sum over each window, and a gradient first sums gradient times intensity over the channels,
 * texel by texel, and then reads its nodes from that. */

#define area_row NAME(area_row)
#define area_add_weights NAME(area_add_weights)
#define area_weigh NAME(area_weigh)
#define area_read_planes NAME(area_read_planes)
#define area_read NAME(area_read)
#define area_contract NAME(area_contract)
#define area_tent_slope NAME(area_tent_slope)
#define area_add_nodes NAME(area_add_nodes)
#define area_combine NAME(area_combine)
#define area_scatter NAME(area_scatter)

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

/* The weights of the texels in the means over the areas, those of a pixel side by side. */
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
ALWAYS_INLINE void area_read_planes(const struct area_job *job, const struct nodes *n, const int32_t *outside,
                                    const float *input, int pixels_here, const int rows, const int planes, float *value)
{
    const int64_t plane = job->height * job->width, width = job->width, pixels = job->out_height * job->out_width;
    const int windows = rows > 2 ? 1 : n->windows;
    for (int i = 0; i < pixels_here; i += 4) {
        if (outside[i / 4] && i + 4 <= pixels_here) {
            for (int c = 0; c < planes; c++)
                memset(value + c * pixels + i, 0, 16);
            continue;
        }
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

ALWAYS_INLINE void area_read(const struct area_job *job, struct nodes *n, const int32_t *outside, int64_t image,
                             int64_t first, int pixels_here, const int rows)
{
    const int64_t pixels = job->out_height * job->out_width, channels = job->channels, plane = job->height * job->width;
    const float *input = job->input + image * job->input_stride;
    float *value = job->value + image * channels * pixels + first;
    area_weigh(n, rows);
    int64_t c = 0;
    for (; c + PLANES_AT_ONCE <= channels; c += PLANES_AT_ONCE)
        area_read_planes(job, n, outside, input + c * plane, pixels_here, rows, PLANES_AT_ONCE, value + c * pixels);
    for (; c < channels; c++)
        area_read_planes(job, n, outside, input + c * plane, pixels_here, rows, 1, value + c * pixels);
}

/* Gradient times intensity, summed over the channels, of every texel of the windows. */
ALWAYS_INLINE void area_contract(const struct area_job *job, struct nodes *n, const int32_t *outside, int64_t image,
                                 int64_t first, int pixels_here, const int rows)
{
    const int64_t pixels = job->out_height * job->out_width, plane = job->height * job->width, width = job->width;
    const float *input = job->input + image * job->input_stride;
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
                if (outside[i / 4]) {
                    for (int t = 0; t < (channel > 0 ? 0 : rows * COLUMNS(rows)); t++)
                        memset(sums + t * BLOCK, 0, 16);
                    continue;
                }
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

/* Read a few nodes of one axis's edges from the contracted texels, and add them up, those of the low edge first. */
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
