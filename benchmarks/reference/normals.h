/* Normal numbers: Box-Muller on blocks of words, written so that gcc makes vectors of it; and the Ziggurat,
 * one number at a time.
 *
 * A pair takes two 32-bit words: the radius sqrt(-2 log u), u in (0, 1], and the angle, reduced in integers.
 * The polynomials are least-squares fits, good to 1e-7 in float and 1e-15 in double. Ziggurat: Marsaglia, Tsang
 * 2000, Journal of Statistical Software 5, 8, with the 128 layers and the tail of Doornik 2005.
 */
#pragma once
#include <math.h>
#include "words.h"

#ifdef SINGLE
typedef float real;
#else
typedef double real;
#endif

#ifdef SINGLE
static inline float log_uniform(uint32_t w) {
    float u = (float)(int32_t)((w >> 8) + 1) * 0x1p-24f;
    int32_t bits;
    memcpy(&bits, &u, 4);
    int32_t e = (bits - 0x3f3504f3) >> 23;
    bits -= e << 23;
    float m;
    memcpy(&m, &bits, 4);
    float f = m - 1.0f, p = 0.0865427512f;
    p = p * f - 0.142544762f;
    p = p * f + 0.149258829f;
    p = p * f - 0.165798135f;
    p = p * f + 0.199621322f;
    p = p * f - 0.250012445f;
    p = p * f + 0.333339373f;
    return (float)e * 0.693147181f + (f - 0.5f * f * f + f * f * f * p);
}
static inline float sine(float a) {
    float y = a * a;
    return a + a * y * (-0.166666647f + y * (0.00833274863f - y * 0.000195879499f));
}
static inline float cosine(float a) {
    float y = a * a;
    return 1.0f - 0.5f * y + y * y * (0.0416666647f + y * (-0.00138883033f + y * 2.45479913e-05f));
}
#else
static inline double log_uniform(uint32_t w) {
    double u = ((double)w + 0.5) * 0x1p-32;
    int64_t bits;
    memcpy(&bits, &u, 8);
    int64_t e = (bits - 0x3fe6a09e667f3bcd) >> 52;
    bits -= e << 52;
    double m;
    memcpy(&m, &bits, 8);
    double f = m - 1.0, s = f / (2.0 + f), z = s * s, p = 0.07308546618779102;
    p = p * z + 0.07665832399653132;
    p = p * z + 0.09091445502524885;
    p = p * z + 0.11111105553063545;
    p = p * z + 0.14285714313086528;
    p = p * z + 0.19999999999949503;
    p = p * z + 0.3333333333333335;
    return (double)e * 0.6931471805599453 + 2.0 * s * (1.0 + z * p);
}
static inline double sine(double a) {
    double y = a * a, p = 1.5918135932869774e-10;
    p = p * y - 2.5051131947374594e-08;
    p = p * y + 2.7557316103105014e-06;
    p = p * y - 0.0001984126983675979;
    p = p * y + 0.00833333333333095;
    p = p * y - 0.16666666666666666;
    return a + a * y * p;
}
static inline double cosine(double a) {
    double y = a * a, p = -1.1382636115964061e-11;
    p = p * y + 2.087614632531677e-09;
    p = p * y - 2.7557317272036996e-07;
    p = p * y + 2.4801587298766363e-05;
    p = p * y - 0.0013888888888887398;
    p = p * y + 0.041666666666666664;
    return 1.0 - 0.5 * y + y * y * p;
}
#endif

/* z[0:n] and z[n:2n] from n words for the radii and n for the angles. */
static inline void box_muller(const uint32_t *restrict radius, const uint32_t *restrict angle, real *restrict z, int n) {
#pragma GCC ivdep
    for (int i = 0; i < n; i++) {
        real r = -2 * log_uniform(radius[i]);
#ifdef SINGLE
        r = sqrtf(r);
#else
        r = sqrt(r);
#endif
        uint32_t w = angle[i], quadrant = (w + 0x20000000u) >> 30;
        real a = (real)(int32_t)(w << 2) * (real)(1.5707963267948966 * 0x1p-32);
        real s = sine(a), c = cosine(a);
        real x = quadrant & 1 ? s : c, y = quadrant & 1 ? c : s;
        z[i] = (quadrant + 1) & 2 ? -r * x : r * x;
        z[i + n] = quadrant & 2 ? -r * y : r * y;
    }
}

#define LAYERS 128
static double zig_x[LAYERS + 1], zig_ratio[LAYERS];

static void ziggurat_tables(void) {
    const double edge = 3.442619855899, area = 9.91256303526217e-3;
    double f = exp(-0.5 * edge * edge);
    zig_x[0] = area / f, zig_x[1] = edge, zig_x[LAYERS] = 0.0;
    for (int i = 2; i < LAYERS; i++) {
        zig_x[i] = sqrt(-2.0 * log(area / zig_x[i - 1] + f));
        f = exp(-0.5 * zig_x[i] * zig_x[i]);
    }
    for (int i = 0; i < LAYERS; i++) zig_ratio[i] = zig_x[i + 1] / zig_x[i];
}

typedef struct { uint64_t a, b, c, d; } scalar_xoshiro;

static inline uint64_t scalar_next(scalar_xoshiro *s) {
    uint64_t result = s->a + s->d, t = s->b << 17;
    s->c ^= s->a, s->d ^= s->b, s->b ^= s->c, s->a ^= s->d;
    s->c ^= t;
    s->d = (s->d << 45) | (s->d >> 19);
    return result;
}

static inline double scalar_uniform(scalar_xoshiro *s) { return (double)((scalar_next(s) >> 11) + 1) * 0x1p-53; }

static inline real ziggurat(scalar_xoshiro *s) {
    for (;;) {
        uint64_t w = scalar_next(s);
        unsigned i = (w >> 3) & (LAYERS - 1);
        double u = (double)((int64_t)w >> 11) * 0x1p-52;
        if (__builtin_expect(fabs(u) < zig_ratio[i], 1)) return (real)(u * zig_x[i]);
        if (i == 0) {
            double x, y;
            do {
                x = log(scalar_uniform(s)) / zig_x[1];
                y = log(scalar_uniform(s));
            } while (-2.0 * y < x * x);
            return (real)(u < 0 ? x - zig_x[1] : zig_x[1] - x);
        }
        double x = u * zig_x[i];
        double f0 = exp(-0.5 * (zig_x[i] * zig_x[i] - x * x));
        double f1 = exp(-0.5 * (zig_x[i + 1] * zig_x[i + 1] - x * x));
        if (f1 + scalar_uniform(s) * (f0 - f1) < 1.0) return (real)x;
    }
}
