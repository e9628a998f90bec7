/* Every job of the C kernel, done by one thread and by eight at once, which must not change a digit. tests/sanitize.py
 * builds this with the thread sanitizer, which reports every race. */

#include "../lms_geometry/backends/_cpu.c"

#include <pthread.h>
#include <stdio.h>

enum { B = 5, C = 3, H = 23, W = 29, h = 31, w = 37, K = 8, THREADS = 8, NODES = 3 };

static float image[B * C * H * W], grid[B * h * w * 2], noise[(K - 1) * h * w * 2], gradients[B * C * h * w];
static float values[B * C * h * w], slopes[B * C * h * w * 2], by_grid[B * h * w * 2], by_image[B * C * H * W];
static uint8_t plain[B * h * w];
static void *job;
static void (*work)(void *);

static void fill(float *numbers, int count, float low, float high)
{
    for (int i = 0; i < count; i++)
        numbers[i] = low + (high - low) * (rand() / (float)RAND_MAX);
}

static void *share(void *unused)
{
    work(job);
    return unused;
}

/* Do a job by so many threads. The number of items that were taken is set back first, as Python does. */
static void run(void (*kernel)(void *), void *what, int64_t *taken, int threads)
{
    pthread_t all[THREADS];
    work = kernel;
    job = what;
    *taken = 0;
    for (int i = 0; i < threads; i++)
        pthread_create(all + i, NULL, share, NULL);
    for (int i = 0; i < threads; i++)
        pthread_join(all[i], NULL);
}

static int compare(const char *name, void (*kernel)(void *), void *what, int64_t *taken, float *result, size_t size)
{
    float *alone = malloc(size);
    memset(result, 0, size);
    run(kernel, what, taken, 1);
    memcpy(alone, result, size);
    memset(result, 0, size);
    run(kernel, what, taken, THREADS);
    const int differs = memcmp(alone, result, size) != 0;
    printf("%s: %s\n", name, differs ? "threads change the result" : "the same by 1 and by 8 threads");
    free(alone);
    return differs;
}

int main(void)
{
    fill(image, B * C * H * W, 0, 1);
    fill(grid, B * h * w * 2, -1.3f, 1.3f);
    fill(noise, (K - 1) * h * w * 2, -2, 2);
    fill(gradients, B * C * h * w, -1, 1);
    struct sample_job drawn = {
        .input = image, .grid = grid, .noise = noise, .value = values, .slope = slopes, .input_stride = C * H * W,
        .grid_stride = h * w * 2, .batch = B, .channels = C, .height = H, .width = W, .out_height = h, .out_width = w,
        .samples = K, .sigma = 1, .jitter = 1, .ridge = 1e-3f, .to_whiten = 1, .intercept = 1, .mask = 1,
        .threads = THREADS,
    };
    struct gradient_job summed = {
        .value_gradient = gradients, .slope = slopes, .grid_gradient = by_grid, .batch = B, .channels = C,
        .pixels = h * w,
    };
    struct area_job area = {
        .input = image, .grid = grid, .value = values, .value_gradient = gradients, .image_gradient = by_image,
        .grid_gradient = by_grid, .plain = plain, .input_stride = C * H * W, .grid_stride = h * w * 2, .batch = B,
        .channels = C, .height = H, .width = W, .out_height = h, .out_width = w, .count = NODES, .rows = 8,
        .together = 1, .side = 1, .limit = 1.001f,
    };
    int differs = compare("sample", (void (*)(void *))sample_baseline, &drawn, &drawn.taken, slopes, sizeof slopes);
    differs |= compare("gradient", (void (*)(void *))gradient_baseline, &summed, &summed.taken, by_grid,
                       sizeof by_grid);
    run((void (*)(void *))area_search_baseline, &area, &area.taken, THREADS);
    differs |= compare("area_mean", (void (*)(void *))area_mean_baseline, &area, &area.taken, values, sizeof values);
    differs |= compare("area_image_gradient", (void (*)(void *))area_image_gradient_baseline, &area, &area.taken,
                       by_image, sizeof by_image);
    area.count = NODES + 1; /* along an edge */
    differs |= compare("area_gradient", (void (*)(void *))area_gradient_baseline, &area, &area.taken, by_grid,
                       sizeof by_grid);
    return differs;
}
