/* The loops of directions.py and update.py over float32 values on a CPU, with the bits of their tensor operations.
 *
 * Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), is made for `LANES` blocks at
 * a time and used up at once, so that a direction is never written to memory: what a tile of values needs stays in the
 * nearest cache for all directions of all steps. To have the bits of the tensor operations, every product and every sum
 * is rounded by itself, in their order: compile with -ffp-contract=off. Loops are plain, for the compiler to vectorise.
 */

#include <math.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#if defined(__GNUC__)
#define INLINED static inline __attribute__((always_inline))
#define EXPORTED __attribute__((visibility("default")))
#elif defined(_MSC_VER)
#define INLINED static __forceinline
#define EXPORTED __declspec(dllexport)
#else
#define INLINED static inline
#define EXPORTED
#endif

enum { LANES = 16, WORDS = 4, SIGNS = 128, NORMALS = 8, TILE = LANES * SIGNS };

enum { SGD, SIGN, MOMENTUM, ADAMW };

/* The words of the blocks `block`, `block` + 1, …: a word's lanes lie together. */
INLINED void philox(uint32_t words[WORDS][LANES], uint64_t block, uint64_t name, uint64_t seed)
{
    for (int lane = 0; lane < LANES; lane++) {
        uint64_t number = block + (uint64_t)lane;
        uint32_t c0 = (uint32_t)number, c1 = (uint32_t)(number >> 32), c2 = (uint32_t)name, c3 = (uint32_t)(name >> 32);
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#if defined(__GNUC__)
#pragma GCC unroll 10
#endif
        for (int round = 0; round < 10; round++) {
            uint64_t product0 = (uint64_t)c0 * 0xD2511F53u, product1 = (uint64_t)c2 * 0xCD9E8D57u;
            c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
            c1 = (uint32_t)product1;
            c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
            c3 = (uint32_t)product0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        words[0][lane] = c0;
        words[1][lane] = c1;
        words[2][lane] = c2;
        words[3][lane] = c3;
    }
}

/* tile += scale · u, for the `blocks` blocks from `block` on; `table`: quantiles of the normal law, or none for signs. */
INLINED void add_blocks(float *tile, int64_t block, int64_t blocks, uint64_t name, uint64_t seed, float scale,
                        const float *table)
{
    uint32_t words[WORDS][LANES];
    for (int64_t done = 0; done < blocks; done += LANES) {
        int lanes = blocks - done < LANES ? (int)(blocks - done) : LANES;
        philox(words, (uint64_t)(block + done), name, seed);
        for (int lane = 0; lane < lanes; lane++)
            for (int word = 0; word < WORDS; word++) {
                uint32_t bits = words[word][lane];
                if (table) {
                    float *two = tile + ((done + lane) * WORDS + word) * 2;
                    two[0] += scale * table[bits & 0xFFFF];
                    two[1] += scale * table[bits >> 16];
                } else {
                    float *many = tile + ((done + lane) * WORDS + word) * 32;
                    for (int bit = 0; bit < 32; bit++)
                        many[bit] += bits & (1u << bit) ? -scale : scale;
                }
            }
    }
}

/* For each row: its `width` values += scale · u[starts[row]], scale · u[starts[row] + 1], … */
EXPORTED FOR_EACH_PROCESSOR void halfback_add(float *values, const int64_t *starts, int64_t rows, int64_t width,
                                              uint64_t name, uint64_t seed, float scale, const float *table)
{
    const int64_t each = table ? NORMALS : SIGNS;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t done = 0; done < width;) {
            float tile[TILE];
            int64_t start = starts[row] + done, before = start % each, after = width - done;
            if (after > TILE - before)
                after = TILE - before;
            for (int i = 0; i < TILE; i++)
                tile[i] = -0.0f; /* the one number to which adding x gives x, for either zero too */
            add_blocks(tile, start / each, (before + after + each - 1) / each, name, seed, scale, table);
            float *own = values + row * width + done;
            for (int64_t i = 0; i < after; i++)
                own[i] += tile[before + i];
            done += after;
        }
}

/* A step's numbers, in the order of `UpdateRule.factors`; those behind `lr` are an optimiser's own. */
struct factors {
    float decay, lr, beta1, rest1, beta2, rest2, unbias1, unbias2, eps;
};

/* Some steps: `directions` seeds and coefficients for each, and its factors. */
struct steps {
    int64_t optimizer, count, directions;
    const uint64_t *seeds;
    const float *coefficients;
    const struct factors *factors;
    const float *table;
};

/* One step of the optimiser on a tile; the arithmetic of `UpdateRule.step`. */
INLINED void move(int64_t optimizer, const struct factors *by, float *restrict values, float *restrict first,
                  float *restrict second, const float *restrict gradient, int count)
{
    const struct factors f = *by;
    if (optimizer == SGD)
        for (int i = 0; i < count; i++)
            values[i] = values[i] * f.decay - gradient[i] * f.lr;
    else if (optimizer == SIGN)
        for (int i = 0; i < count; i++)
            values[i] = values[i] * f.decay - (float)((gradient[i] > 0) - (gradient[i] < 0)) * f.lr;
    else if (optimizer == MOMENTUM)
        for (int i = 0; i < count; i++) {
            first[i] = first[i] * f.beta1 + gradient[i];
            values[i] = values[i] * f.decay - first[i] * f.lr;
        }
    else
        for (int i = 0; i < count; i++) {
            first[i] = first[i] * f.beta1 + gradient[i] * f.rest1;
            second[i] = second[i] * f.beta2 + gradient[i] * gradient[i] * f.rest2;
            values[i] = values[i] * f.decay - first[i] * f.unbias1 / (sqrtf(second[i] * f.unbias2) + f.eps) * f.lr;
        }
}

/* Takes all steps on the `width` values from value `start` on of a parameter; `start` is at the beginning of a block. */
EXPORTED FOR_EACH_PROCESSOR void halfback_replay(const struct steps *steps, float *values, float *first, float *second,
                                                 int64_t start, int64_t width, uint64_t name)
{
    const struct steps s = *steps;
    const int64_t each = s.table ? NORMALS : SIGNS;
    for (int64_t done = 0; done < width; done += TILE) {
        float gradient[TILE];
        int count = width - done < TILE ? (int)(width - done) : TILE;
        for (int64_t step = 0; step < s.count; step++) {
            for (int i = 0; i < TILE; i++)
                gradient[i] = -0.0f;
            for (int64_t at = step * s.directions; at < (step + 1) * s.directions; at++)
                add_blocks(gradient, (start + done) / each, (count + each - 1) / each, name, s.seeds[at],
                           s.coefficients[at], s.table);
            move(s.optimizer, s.factors + step, values + done, first ? first + done : 0, second ? second + done : 0,
                 gradient, count);
        }
    }
}
