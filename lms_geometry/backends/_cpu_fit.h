/* The weights of the samples: the draws, their moments, and the ridge fit (4-7). Names are those of noise.py and
 * least_squares.py. */

#define load NAME(load)
#define whiten NAME(whiten)
#define sum NAME(sum)
#define fit NAME(fit)

/* Load the draws of a block, which are one image's own or shared by the batch. That of the centre is 0. */
static void load(const struct sample_job *job, int64_t image, int64_t first, int n, struct samples *s)
{
    const int64_t pixels = job->out_height * job->out_width;
    const float *noise = job->noise + image * job->noise_stride + 2 * first;
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

/* Give the draws mean 0 and covariance 1, by Gram-Schmidt over the two axes, in as many rounds as noise.py. */
static void whiten(const struct sample_job *job, struct samples *s)
{
    const float each = 1.f / (job->samples - 1);
    for (int round = job->samples == 4 ? 2 : 1; round > 0; round--) {
        float mean_x[BLOCK] = {0}, mean_y[BLOCK] = {0}, xx[BLOCK] = {0}, xy[BLOCK] = {0}, yy[BLOCK] = {0};
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
        EACH(i) xy[i] /= xx[i] > 0 ? xx[i] : 1;
        for (int64_t k = 1; k < job->samples; k++)
            EACH(i) {
                const float y = s->noise_y[k * BLOCK + i] -= xy[i] * s->noise_x[k * BLOCK + i];
                yy[i] += each * y * y;
            }
        EACH(i) {
            xx[i] = xx[i] > 0 ? 1 / sqrtf(xx[i]) : 0;
            yy[i] = yy[i] > 0 ? 1 / sqrtf(yy[i]) : 0;
        }
        for (int64_t k = 1; k < job->samples; k++)
            EACH(i) {
                s->noise_x[k * BLOCK + i] *= xx[i];
                s->noise_y[k * BLOCK + i] *= yy[i];
            }
    }
}

/* The moments of the draws whose `inside` is 1; the others have 0. */
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
    float product[BLOCK], several[BLOCK]; /* whether there are two draws or more, without which all lie on a line */
    float lost_x[BLOCK], lost_y[BLOCK];   /* s m, sheared along y */
    EACH(i) {
        const float count = m->count[i] > 1 ? m->count[i] : 1, each = job->intercept ? 1 / count : 0;
        const float lost = job->ridge / (count + job->ridge);
        const float x = each * m->mean_x[i], y = each * m->mean_y[i];
        m->count[i] = count;
        m->kept[i] = count / (count + job->ridge);
        m->mean_x[i] = x;
        m->mean_y[i] = y;
        lost_x[i] = lost * x;
        m->second_xx[i] = lost * count * x * x;
        product[i] = lost * count * x * y;
    }
    for (int64_t k = 1; k < job->samples; k++) {
        const float *noise_x = s->noise_x + k * BLOCK, *noise_y = s->noise_y + k * BLOCK, *in = inside + k * BLOCK;
        float *cross_x = m->cross_x + k * BLOCK, *cross_y = m->cross_y + k * BLOCK;
        EACH(i) {
            const float x = in[i] * (noise_x[i] - m->mean_x[i]), y = in[i] * (noise_y[i] - m->mean_y[i]);
            m->second_xx[i] += x * x;
            product[i] += x * y;
            cross_x[i] = x;
            cross_y[i] = y;
        }
    }
    EACH(i) {
        const float shear = clamp(product[i] / (m->second_xx[i] > 0 ? m->second_xx[i] : 1), -LARGEST_SHEAR, LARGEST_SHEAR);
        several[i] = m->count[i] > 1;
        const float y = several[i] * (m->mean_y[i] - shear * m->mean_x[i]);
        const float lost = job->ridge / (m->count[i] + job->ridge);
        m->shear[i] = shear;
        m->mean_y[i] = y;
        m->second_yy[i] = lost * m->count[i] * y * y;
        lost_y[i] = lost * y;
    }
    for (int64_t k = 1; k < job->samples; k++) {
        const float *in = inside + k * BLOCK;
        float *cross_x = m->cross_x + k * BLOCK, *cross_y = m->cross_y + k * BLOCK;
        EACH(i) {
            const float y = several[i] * (cross_y[i] - m->shear[i] * cross_x[i]);
            m->second_yy[i] += y * y;
            cross_x[i] += in[i] * lost_x[i];
            cross_y[i] = y + in[i] * lost_y[i];
        }
    }
}

/* The weight of each sample in A_uv = (L Q L' + eps I)^-1 L q, as solve_slope has it, and in A_1. The fit takes
 * differences from the centre, so the centre's weight is less by all the others. */
static void fit(const struct sample_job *job, const struct pixels *p, const struct moments *m, const float *inside,
                struct samples *s)
{
    float xx[BLOCK], xy[BLOCK], yx[BLOCK], yy[BLOCK], drift_x[BLOCK], drift_y[BLOCK];
    float total[BLOCK]; /* the weight in A_1 of the sum of all differences */
    EACH(i) {
        const float l11 = p->l11[i], l22 = p->l22[i], l21 = p->l21[i] + m->shear[i] * l22, area = l11 * l22;
        const float along_x = l11 * l11 + l21 * l21, along_y = l22 * l22;
        const float second_xx = m->second_xx[i], second_yy = m->second_yy[i];
        const float trace = along_x * second_xx + along_y * second_yy;
        const float determinant = area * area * (second_xx * second_yy) + job->ridge * (trace + job->ridge);
        const float scaled = area / determinant, damping = job->ridge / determinant, both = damping * (l21 * l22);
        xx[i] = scaled * (l22 * second_yy) + damping * l11;
        yx[i] = damping * l21;
        xy[i] = -scaled * (l21 * second_xx);
        yy[i] = scaled * (l11 * second_xx) + damping * l22;
        const float draw_xx = scaled * (area * second_yy) + damping * along_x;
        const float draw_yy = scaled * (area * second_xx) + damping * along_y;
        drift_x[i] = m->kept[i] * (m->mean_x[i] * draw_xx + m->mean_y[i] * both);
        drift_y[i] = m->kept[i] * (m->mean_x[i] * both + m->mean_y[i] * draw_yy);
        total[i] = m->kept[i] / m->count[i];
    }
    EACH(i) {
        s->value[i] = 1;
        s->slope_x[i] = s->slope_y[i] = 0;
    }
    for (int64_t k = 1; k < job->samples; k++) {
        const float *cross_x = m->cross_x + k * BLOCK, *cross_y = m->cross_y + k * BLOCK, *in = inside + k * BLOCK;
        float *value = s->value + k * BLOCK, *slope_x = s->slope_x + k * BLOCK, *slope_y = s->slope_y + k * BLOCK;
        EACH(i) {
            value[i] = in[i] * total[i] - drift_x[i] * cross_x[i] - drift_y[i] * cross_y[i];
            slope_x[i] = p->unit_x[i] * (xx[i] * cross_x[i] + xy[i] * cross_y[i]);
            slope_y[i] = p->unit_y[i] * (yx[i] * cross_x[i] + yy[i] * cross_y[i]);
            s->value[i] -= value[i];
            s->slope_x[i] -= slope_x[i];
            s->slope_y[i] -= slope_y[i];
        }
    }
}
