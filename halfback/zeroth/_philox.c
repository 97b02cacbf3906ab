/* The loops of directions.py and update.py over float32 values on a CPU, with the bits of their tensor operations.
 *
 * Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), is made for `LANES` blocks at
 * a time and used up at once, so that a direction is never written to memory: what a tile of values needs stays in the
 * nearest cache for all directions of all steps. To have the bits of the tensor operations, every product and every sum
 * is rounded by itself, in their order: compile with -ffp-contract=off. Loops are plain, for the compiler (GCC or Clang) to vectorise.
 */

#include <stdint.h>

#if defined(__x86_64__) && defined(__GLIBC__)
#define EXPORTED __attribute__((visibility("default"), target_clones("avx512f", "avx2", "default")))
#else
#define EXPORTED __attribute__((visibility("default")))
#endif
#define INLINED static inline __attribute__((always_inline)) /* so that it has the instructions of its caller */

enum { LANES = 16, WORDS = 4, SIGNS = 128, NORMALS = 8, TILE = LANES * SIGNS };

/* What is done with the gradient estimate of a step; ESTIMATE: it is what is wanted. */
enum { ESTIMATE, SGD, SIGN, MOMENTUM };

/* The words of the blocks `block`, `block` + 1, …: a word's lanes lie together. */
INLINED void philox(uint32_t words[WORDS][LANES], uint64_t block, uint64_t name, uint64_t seed)
{
    for (int lane = 0; lane < LANES; lane++) {
        uint64_t number = block + (uint64_t)lane;
        uint32_t c0 = (uint32_t)number, c1 = (uint32_t)(number >> 32), c2 = (uint32_t)name, c3 = (uint32_t)(name >> 32);
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma GCC unroll 10
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

/* Fills a tile with the one number to which adding x gives x, for either zero too; at least to its value `count`. */
INLINED void clear(float *tile, int64_t count)
{
    for (int64_t block = 0; block < count; block += SIGNS)
        for (int i = 0; i < SIGNS; i++)
            tile[block + i] = -0.0f;
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

/* For each row: its `width` values are scale · u[starts[row]], scale · u[starts[row] + 1], …, and those of `base` more. */
EXPORTED void halfback_add(float *values, const float *base, const int64_t *starts, int64_t rows, int64_t width,
                           uint64_t name, uint64_t seed, float scale, const float *table)
{
    const int64_t each = table ? NORMALS : SIGNS;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t done = 0; done < width;) {
            float tile[TILE];
            int64_t start = starts[row] + done, before = start % each, count = width - done, at = row * width + done;
            if (count > TILE - before)
                count = TILE - before;
            clear(tile, before + count);
            add_blocks(tile, start / each, (before + count + each - 1) / each, name, seed, scale, table);
            for (int64_t i = 0; i < count; i++)
                values[at + i] = base ? base[at + i] + tile[before + i] : tile[before + i];
            done += count;
        }
}

/* Some steps: each has `directions` seeds and coefficients, and for an optimiser a factor of weight decay (1 for none)
 * and a learning rate. */
struct steps {
    int64_t kind, count, directions;
    const uint64_t *seeds;
    const float *coefficients, *decays, *rates;
    float momentum;
    const float *table;
};

/* By which Python knows that its `_Steps` is this one. */
EXPORTED int halfback_steps_size(void)
{
    return (int)sizeof(struct steps);
}

/* One step on a tile; the arithmetic of `UpdateRule.step`. */
INLINED void move(const struct steps *steps, int64_t step, float *restrict values, float *restrict velocity,
                  const float *restrict gradient, int count)
{
    if (steps->kind == ESTIMATE) {
        for (int i = 0; i < count; i++)
            values[i] = gradient[i];
        return;
    }
    const float decay = steps->decays[step], rate = steps->rates[step], momentum = steps->momentum;
    if (steps->kind == SGD)
        for (int i = 0; i < count; i++)
            values[i] = values[i] * decay - gradient[i] * rate;
    else if (steps->kind == SIGN)
        for (int i = 0; i < count; i++)
            values[i] = values[i] * decay - (float)((gradient[i] > 0) - (gradient[i] < 0)) * rate;
    else
        for (int i = 0; i < count; i++) {
            velocity[i] = velocity[i] * momentum + gradient[i];
            values[i] = values[i] * decay - velocity[i] * rate;
        }
}

/* Takes all steps on the `width` values from value `start` on of a parameter; `start` is at the beginning of a block. */
EXPORTED void halfback_replay(const struct steps *steps, float *values, float *velocity, int64_t start, int64_t width,
                              uint64_t name)
{
    const struct steps s = *steps;
    const int64_t each = s.table ? NORMALS : SIGNS;
    for (int64_t done = 0; done < width; done += TILE) {
        float gradient[TILE];
        int count = width - done < TILE ? (int)(width - done) : TILE;
        for (int64_t step = 0; step < s.count; step++) {
            clear(gradient, count);
            for (int64_t at = step * s.directions; at < (step + 1) * s.directions; at++)
                add_blocks(gradient, (start + done) / each, (count + each - 1) / each, name, s.seeds[at],
                           s.coefficients[at], s.table);
            move(&s, step, values + done, velocity ? velocity + done : 0, gradient, count);
        }
    }
}
