/* The fused kernel. _cpu.c includes it once for every instruction set, under another NAME.
 *
 * The value and the slopes of an output pixel are linear in what its K samples read. So a block of output pixels is
 * done in two steps. First `locate`, `place`, `sum` and `fit` work out where the samples fall and with what weight each
 * enters the value and the slopes, all pixels of the block at once, in loops that compilers vectorise. Then `read`
 * reads the texels and adds them up, a few channels at a time. */

#include "_cpu_geometry.h"
#include "_cpu_fit.h"
#include "_cpu_read.h"

#define sample NAME(sample)
#define gradient NAME(gradient)

/* The share of one thread: it takes blocks of pixels until none is left, and does each for a few images in turn. */
void sample(struct sample_job *job)
{
    const int64_t pixels = job->out_height * job->out_width, blocks = (pixels + BLOCK - 1) / BLOCK;
    const int64_t groups = (job->batch + TOGETHER - 1) / TOGETHER, items = groups * blocks;
    const int64_t plane = job->samples * BLOCK;
    struct pixels p;
    struct samples s;
    struct moments all, some; /* those of all draws, and of the draws inside the image */

    /* A small image that many samples read is packed by every thread that reads it. So that few threads do, a thread
     * takes whole groups of images where there are enough of them. Whether an image is packed must not depend on the
     * number of threads, since it changes the order of a sum. */
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
                       &all.cross_x, &all.cross_y, &some.cross_x, &some.cross_y};
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
                    pack(job, job->input + image * job->input_stride, packed + (image - begin_image) * packed_image);
            }
            for (int64_t image = begin_image; image < end_image; image++) {
                if (image == begin_image || job->noise_stride) {
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
