/* Reading the texels and adding them up: by planes, from a packed copy of a small image, or eight channels at once. */

#define sum4 NAME(sum4)
#define read_planes NAME(read_planes)
#define transpose NAME(transpose)
#define pack NAME(pack)
#define read_packed NAME(read_packed)
#define read_channels NAME(read_channels)
#define read NAME(read)

/* Declared anew for every instruction set: GCC keeps a vector in memory that is wider than the set it was declared
 * for. */
#define float8 NAME(float8)
typedef float float8 __attribute__((vector_size(32), aligned(4)));

/* The sums over each of four vectors, as one vector. */
ALWAYS_INLINE float4 sum4(const float4 *a)
{
    const float4 p = SHUFFLE(a[0], a[1], 0, 4, 1, 5) + SHUFFLE(a[0], a[1], 2, 6, 3, 7);
    const float4 q = SHUFFLE(a[2], a[3], 0, 4, 1, 5) + SHUFFLE(a[2], a[3], 2, 6, 3, 7);
    return SHUFFLE(p, q, 0, 1, 4, 5) + SHUFFLE(p, q, 2, 3, 6, 7);
}

/* Turn four rows into four columns. */
ALWAYS_INLINE void transpose(float4 *a)
{
    const float4 p = SHUFFLE(a[0], a[1], 0, 4, 1, 5), q = SHUFFLE(a[2], a[3], 0, 4, 1, 5);
    const float4 r = SHUFFLE(a[0], a[1], 2, 6, 3, 7), t = SHUFFLE(a[2], a[3], 2, 6, 3, 7);
    a[0] = SHUFFLE(p, q, 0, 1, 4, 5);
    a[1] = SHUFFLE(p, q, 2, 3, 6, 7);
    a[2] = SHUFFLE(r, t, 0, 1, 4, 5);
    a[3] = SHUFFLE(r, t, 2, 3, 6, 7);
}

/* Read up to three planes of one image, pixel by pixel. A vector holds the four texels of one read, which are added up
 * last, for four pixels at once. */
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

/* Copy two to four planes of a small image texel by texel, so that one load gets all channels. */
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

/* Read all channels of one packed image, for four pixels at once. */
ALWAYS_INLINE void read_packed(const struct sample_job *job, const struct samples *s, const float *packed, int n,
                               const int intercept, float *value, float *slope)
{
    const int64_t down = 4 * job->width, pixels = job->out_height * job->out_width;
    for (int i = 0; i < n; i += 4) {
        float4 values[4], slopes_x[4], slopes_y[4];
        for (int j = 0; j < 4; j++) {
            float8 v = {0}, x = {0}, y = {0}; /* sums over the two texels to the left, and to the right */
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

/* Read eight channels of one image whose channels lie side by side. */
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
    const float *input = job->input + image * job->input_stride;
    float *value = job->value + image * channels * pixels + first;
    float *slope = job->slope + 2 * (image * channels * pixels + first);
    if (packed)
        read_packed(job, s, packed, n, intercept, value, slope);
    else if (job->channels_last)
        for (int64_t c = 0; c < channels; c += 8) {
            if (c + 8 > channels)
                c = channels - 8; /* the last eight, of which some are read once more */
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
