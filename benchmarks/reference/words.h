/* Random words for a block of paths: xoshiro256+ in eight streams a vector, and Philox-4x32-10.
 *
 * xoshiro256+: Blackman, Vigna 2021, ACM Transactions on Mathematical Software 47, 36. Philox: Salmon, Moraes,
 * Dror, Shaw 2011, Parallel random numbers: as easy as 1, 2, 3.
 */
#pragma once
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef uint64_t lanes __attribute__((vector_size(64)));

static inline uint64_t splitmix(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

typedef struct { lanes a, b, c, d; } xoshiro;

static inline xoshiro xoshiro_seed(uint64_t seed) {
    xoshiro s;
    uint64_t words[32];
    for (int i = 0; i < 32; i++) words[i] = splitmix(&seed);
    memcpy(&s.a, words, 64), memcpy(&s.b, words + 8, 64);
    memcpy(&s.c, words + 16, 64), memcpy(&s.d, words + 24, 64);
    return s;
}

static inline lanes xoshiro_next(xoshiro *s) {
    lanes result = s->a + s->d, t = s->b << 17;
    s->c ^= s->a;
    s->d ^= s->b;
    s->b ^= s->c;
    s->a ^= s->d;
    s->c ^= t;
    s->d = (s->d << 45) | (s->d >> 19);
    return result;
}

/* The low halves' product with a 32-bit constant, 64 bits. */
static inline lanes wide(lanes a, uint32_t m) {
#ifdef __AVX512F__
    return (lanes)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
#else
    return (a & 0xffffffffu) * (uint64_t)m;
#endif
}

typedef struct { lanes w[4]; } philox_words; /* each word in the low half of its lane; high halves arbitrary */

static inline philox_words philox(lanes c0, lanes c1, lanes c2, lanes c3, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        lanes p = wide(c0, 0xd2511f53u), q = wide(c2, 0xcd9e8d57u);
        c0 = (q >> 32) ^ c1 ^ (lanes){k0, k0, k0, k0, k0, k0, k0, k0};
        c2 = (p >> 32) ^ c3 ^ (lanes){k1, k1, k1, k1, k1, k1, k1, k1};
        c1 = q, c3 = p;
        k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
    }
    return (philox_words){{c0, c1, c2, c3}};
}
