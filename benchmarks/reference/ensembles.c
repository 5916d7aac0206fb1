/* Euler-Maruyama for ensembles, one thread: what a program written for the problem reaches.
 *
 *     gcc -O3 -march=native -ffast-math -c -fPIC [-DSINGLE] ensembles.c && gcc -shared ensembles.o -lm
 *
 * For each problem three functions f(x, paths, steps, h, seed), x (paths, dim) the states, start and end:
 *
 *     NAME_xoshiro   blocks of paths, time outside, paths inside; xoshiro256+ in vectors, Box-Muller
 *     NAME_philox    the same with Philox-4x32-10, a function of (path, step, seed)
 *     NAME_plain     path after path; xoshiro256+, Ziggurat
 */
#include "normals.h"

#ifndef BLOCK
#define BLOCK 64
#endif

typedef struct { xoshiro state; } xoshiro_source;
typedef struct { uint64_t seed, path, step; } philox_source;

/* 32 words a turn from each source: 16 radii, 16 angles. */
static inline void xoshiro_draw(xoshiro_source *source, real *z, int count) {
    uint32_t radius[count / 2], angle[count / 2];
    xoshiro s = source->state;
    for (int i = 0; i < count / 2; i += 16) {
        lanes a = xoshiro_next(&s), b = xoshiro_next(&s);
        memcpy(radius + i, &a, 64), memcpy(angle + i, &b, 64);
    }
    source->state = s;
    box_muller(radius, angle, z, count / 2);
}

static inline void philox_draw(philox_source *source, real *z, int count) {
    uint32_t radius[count / 2], angle[count / 2];
    const lanes zero = {0}, step = zero + source->step, lane = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int i = 0; i < count / 2; i += 16) {
        lanes path = source->path + lane;
        philox_words p = philox(zero + (uint64_t)i, step, path, path >> 32, source->seed, source->seed >> 32);
        lanes a = (p.w[0] & 0xffffffffu) | p.w[2] << 32, b = (p.w[1] & 0xffffffffu) | p.w[3] << 32;
        memcpy(radius + i, &a, 64), memcpy(angle + i, &b, 64);
    }
    source->step++;
    box_muller(radius, angle, z, count / 2);
}

/* x and z hold the components in turn, each `n` long; r = sqrt(h). */
static inline void ou(real *restrict x, const real *restrict z, int n, real h, real r) {
    for (int i = 0; i < n; i++) x[i] += -x[i] * h + (real)0.5 * r * z[i];
}

static inline void gbm(real *restrict x, const real *restrict z, int n, real h, real r) {
    for (int i = 0; i < n; i++) x[i] += (real)0.1 * x[i] * h + (real)0.5 * x[i] * (r * z[i]);
}

static inline void lorenz(real *restrict x, const real *restrict z, int n, real h, real r) {
    for (int i = 0; i < n; i++) {
        real a = x[i], b = x[i + n], c = x[i + 2 * n];
        x[i] = a + h * (10 * (b - a)) + r * z[i];
        x[i + n] = b + h * (a * (28 - c) - b) + r * z[i + n];
        x[i + 2 * n] = c + h * (a * b - (real)(8.0 / 3.0) * c) + r * z[i + 2 * n];
    }
}

static inline void heston(real *restrict x, const real *restrict z, int n, real h, real r) {
    for (int i = 0; i < n; i++) {
        real s = x[i], v = x[i + n], u = z[i], w = z[i + n];
#ifdef SINGLE
        real q = r * sqrtf(v > 0 ? v : 0);
#else
        real q = r * sqrt(v > 0 ? v : 0);
#endif
        x[i] = s + h * ((real)0.05 * s) + q * s * u;
        x[i + n] = v + h * (2 * ((real)0.04 - v)) + q * (real)0.2 * ((real)-0.7 * u + (real)0.714142842854285 * w);
    }
}

#define BLOCKED(name, dim, noises, source, begin)                                                            \
    void name##_##source(real *restrict out, long paths, long steps, double dt, uint64_t seed) {              \
        real x[dim * BLOCK], z[noises * BLOCK], h = (real)dt, r = (real)sqrt(dt);                              \
        source##_source stream;                                                                              \
        begin;                                                                                               \
        for (long first = 0; first < paths; first += BLOCK) {                                                \
            int n = paths - first < BLOCK ? (int)(paths - first) : BLOCK;                                    \
            for (int i = 0; i < BLOCK; i++)                                                                  \
                for (int k = 0; k < dim; k++) x[k * BLOCK + i] = i < n ? out[(first + i) * dim + k] : 0;     \
            source##_path(&stream, first);                                                                   \
            for (long step = 0; step < steps; step++) {                                                      \
                source##_draw(&stream, z, noises * BLOCK);                                                   \
                name(x, z, BLOCK, h, r);                                                                     \
            }                                                                                                \
            for (int i = 0; i < n; i++)                                                                      \
                for (int k = 0; k < dim; k++) out[(first + i) * dim + k] = x[k * BLOCK + i];                 \
        }                                                                                                    \
    }

#define PLAIN(name, dim, noises)                                                                             \
    void name##_plain(real *restrict out, long paths, long steps, double dt, uint64_t seed) {                 \
        real h = (real)dt, r = (real)sqrt(dt);                                                               \
        scalar_xoshiro s = {splitmix(&seed), splitmix(&seed), splitmix(&seed), splitmix(&seed)};             \
        ziggurat_tables();                                                                                   \
        for (long path = 0; path < paths; path++) {                                                          \
            real x[dim], z[noises];                                                                          \
            for (int k = 0; k < dim; k++) x[k] = out[path * dim + k];                                        \
            for (long step = 0; step < steps; step++) {                                                      \
                for (int k = 0; k < noises; k++) z[k] = ziggurat(&s);                                        \
                name(x, z, 1, h, r);                                                                         \
            }                                                                                                \
            for (int k = 0; k < dim; k++) out[path * dim + k] = x[k];                                        \
        }                                                                                                    \
    }

static inline void xoshiro_path(xoshiro_source *source, long first) {}
static inline void philox_path(philox_source *source, long first) { source->path = first, source->step = 0; }

#define PROBLEM(name, dim, noises)                                                                           \
    BLOCKED(name, dim, noises, xoshiro, stream.state = xoshiro_seed(seed))                                    \
    BLOCKED(name, dim, noises, philox, stream.seed = seed)                                                    \
    PLAIN(name, dim, noises)

PROBLEM(ou, 1, 1)
PROBLEM(gbm, 1, 1)
PROBLEM(lorenz, 3, 3)
PROBLEM(heston, 2, 2)

/* What the tests compare with the definitions. */
void pairs(const uint32_t *radius, const uint32_t *angle, real *z, long n) {
    box_muller(radius, angle, z, (int)n);
}

void xoshiro_words(uint64_t seed, uint64_t *out, long turns) {
    xoshiro s = xoshiro_seed(seed);
    for (long i = 0; i < turns; i++) {
        lanes w = xoshiro_next(&s);
        memcpy(out + 8 * i, &w, 64);
    }
}

void philox_block(const uint32_t *counter, const uint32_t *key, uint32_t *out) {
    const lanes zero = {0};
    philox_words p =
        philox(zero + counter[0], zero + counter[1], zero + counter[2], zero + counter[3], key[0], key[1]);
    for (int i = 0; i < 4; i++) out[i] = (uint32_t)p.w[i][0];
}
