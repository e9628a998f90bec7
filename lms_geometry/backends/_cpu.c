/* The fused CPU backend. This file has the two jobs that Python hands over, which cpu.py mirrors, and includes one copy
 * of _cpu_kernel.h, which holds the arithmetic, for every instruction set. It is plain C with GNU vector types, without
 * a header of Python or torch: Python loads the library with ctypes. */

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32) /* whose C library has other names for aligned memory, which `free` must not be given */
#include <malloc.h>
#define aligned_alloc(alignment, size) _aligned_malloc(size, alignment)
#define malloc(size) _aligned_malloc(size, 16)
#define free _aligned_free
#endif

enum { ZEROS, BORDER, REFLECTION }; /* in the order of PADDING_MODES in checks.py */

/* Strides count floats. A stride of 0 means that all share one entry. */
struct sample_job {
    const float *input;                                       /* (B, C, H, W), or (B, H, W, C) if channels_last */
    const float *grid;                                        /* (B, h, w, 2) */
    const float *jacobian;                                    /* (B, h, w, 2, 2); NULL: differences of the grid */
    const float *noise;                                       /* (B, K - 1, h, w, 2) */
    float *value, *slope;                                     /* (B, C, h, w) if intercept, (B, C, h, w, 2) */
    int64_t input_stride, grid_stride, jacobian_stride, noise_stride; /* from image to image */
    int64_t pixel_stride;                                       /* of the Jacobian, from pixel to pixel */
    int64_t batch, channels, height, width, out_height, out_width, samples;
    float sigma, jitter, ridge;
    int32_t to_whiten, intercept, mask, padding, align_corners, channels_last, threads;
    int64_t taken;                                            /* the items of work that threads have taken so far */
    int32_t out_of_memory;
};

struct gradient_job {
    const float *value_gradient, *slope; /* (B, C, h, w), (B, C, h, w, 2) */
    float *grid_gradient;                /* (B, h, w, 2) */
    int64_t batch, channels, pixels;
    int64_t taken;
};

enum {
    BLOCK = 48,               /* output pixels that are worked on at a time */
    TOGETHER = 4,             /* images that share the moments of a block's noise */
    LARGEST_PACKED = 1 << 14, /* most texels of an image to be packed: TOGETHER of them fit in the cache */
    GRAIN = 4                 /* blocks that a thread takes at a time, if there are few images */
};

/* FAR_OUTSIDE and LARGEST_DERIVATIVE come from limits.py: setup.py defines them on the compiler's command line. */

typedef float float4 __attribute__((vector_size(16)));
typedef double double2 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef int32_t int8 __attribute__((vector_size(32)));

#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif
#define EACH(i) INDEPENDENT for (int i = 0; i < BLOCK; i++)

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define PERMUTE(a, ...) __builtin_shufflevector(a, a, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (int4){__VA_ARGS__})
#define PERMUTE(a, ...) __builtin_shuffle(a, (int8){__VA_ARGS__})
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* A block of output pixels: where they fall in the source, and how far they reach there. */
struct pixels {
    float x[BLOCK], y[BLOCK];                 /* source pixels */
    float unit_x[BLOCK], unit_y[BLOCK];       /* source pixels per grid unit; 0 for an unusable point */
    float l11[BLOCK], l21[BLOCK], l22[BLOCK]; /* the footprint L */
};

/* The sums of the fit that depend on the draws alone, by the names of least_squares.py. */
struct moments {
    float count[BLOCK], kept[BLOCK];                                /* n and 1 - s */
    float mean_x[BLOCK], mean_y[BLOCK];                             /* m, sheared as the draws are */
    float shear[BLOCK], second_xx[BLOCK], second_yy[BLOCK];         /* b, and the diagonal of Q */
    float *cross_x, *cross_y;                                       /* the weight of each sample's difference in q */
};

/* The samples of a block, the centre first. */
struct samples {
    float *noise_x, *noise_y, *inside;
    int32_t *texel;                           /* the first of the four texels that a sample reads */
    float *tap;                               /* the bilinear weights of the four */
    float *value, *slope_x, *slope_y;         /* the weights of a sample in the value and the slopes */
};

#define PRAGMA(text) _Pragma(#text)
#include "_cpu_area.h"

#if defined(__clang__)
#define BEGIN_TARGET(set) PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define BEGIN_TARGET(set) PRAGMA(GCC push_options) PRAGMA(GCC target(set))
#define END_TARGET PRAGMA(GCC pop_options)
#endif

#if defined(__x86_64__)
#define NAME(x) x##_avx512
BEGIN_TARGET("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#include "_cpu_kernel.h"
#include "_cpu_area_steps.h"
#include "_cpu_area_geometry.h"
#include "_cpu_area_nodes.h"
#include "_cpu_area_reads.h"
#include "_cpu_area_jobs.h"
END_TARGET
#undef NAME
#define NAME(x) x##_avx2
BEGIN_TARGET("avx2,fma")
#include "_cpu_kernel.h"
#include "_cpu_area_steps.h"
#include "_cpu_area_geometry.h"
#include "_cpu_area_nodes.h"
#include "_cpu_area_reads.h"
#include "_cpu_area_jobs.h"
END_TARGET
#undef NAME
#endif

#define NAME(x) x##_baseline
#include "_cpu_kernel.h"
#include "_cpu_area_steps.h"
#include "_cpu_area_geometry.h"
#include "_cpu_area_nodes.h"
#include "_cpu_area_reads.h"
#include "_cpu_area_jobs.h"

/* The widest instruction set of this machine, if its operating system keeps the registers too. Python calls `sample`
 * and the other jobs of that set. (The compilers' own functions for this are not in every runtime library.) */
const char *instruction_set(void)
{
#if defined(__x86_64__)
    const uint32_t avx512 = bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ;
    const uint32_t wide = 0x06, wider = 0xe6; /* the registers of AVX, and those of AVX-512 too, as XGETBV names them */
    uint32_t eax, features, others, edx, kept;
    if (!__get_cpuid(1, &eax, &features, &others, &edx) || !(others & bit_OSXSAVE) || !(others & bit_FMA))
        return "baseline";
    __asm__("xgetbv" : "=a"(kept), "=d"(edx) : "c"(0));
    if (!__get_cpuid_count(7, 0, &eax, &features, &others, &edx) || !(features & bit_AVX2) || (kept & wide) != wide)
        return "baseline";
    return (features & avx512) == avx512 && (kept & wider) == wider ? "avx512" : "avx2";
#endif
    return "baseline";
}

/* The sizes of the jobs, which Python compares with its own when it loads the library. */
int32_t sample_job_size(void)
{
    return sizeof(struct sample_job);
}

int32_t gradient_job_size(void)
{
    return sizeof(struct gradient_job);
}

int32_t area_job_size(void)
{
    return sizeof(struct area_job);
}
