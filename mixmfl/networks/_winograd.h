/* The loops of _winograd.c, which includes this once for each kind of processor. It defines
 *
 *     NAME(x)   x with the kind's name behind it,
 *     TARGET    the attribute that lets a function use the processor's instructions,
 *     HALF      1: maps and weights are bfloat16, multiplied in pairs; 0: float32,
 *     LANES     numbers of a vector,
 *     TILES     tiles whose sums are in registers together, each of two groups of LANES channels.
 */
typedef float NAME(Floats) __attribute__((vector_size(4 * LANES)));
#define Floats NAME(Floats)
#if HALF
#define NUMBER uint16_t
#define PAIR 2
#else
#define NUMBER float
#define PAIR 1
#endif

TARGET INLINE Floats NAME(get)(const NUMBER *at) {
#if HALF
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at)), 16);
#else
    Floats value;
    memcpy(&value, at, sizeof value);
    return value;
#endif
}

TARGET INLINE void NAME(put)(NUMBER *at, Floats value) {
#if HALF
    _mm256_storeu_si256((__m256i *)at, (__m256i)_mm512_cvtneps_pbh((__m512)value));
#else
    memcpy(at, &value, sizeof value);
#endif
}

/* q = B'd */
TARGET INLINE void NAME(to_points)(Floats q[EDGE], const Floats d[EDGE]) {
    Floats even_a = d[4] - BB * d[2], odd_a = d[3] - BB * d[1];
    Floats even_b = d[4] - AA * d[2], odd_b = d[3] - AA * d[1];
    q[0] = AA * BB * d[0] - (AA + BB) * d[2] + d[4];
    q[1] = even_a + A * odd_a, q[2] = even_a - A * odd_a;
    q[3] = even_b + B * odd_b, q[4] = even_b - B * odd_b;
    q[5] = AA * BB * d[1] - (AA + BB) * d[3] + d[5];
}

/* y = A'm, of m that are `step` apart */
TARGET INLINE void NAME(from_points)(Floats y[TILE], const Floats *m, long step) {
    Floats sum_a = m[step] + m[2 * step], apart_a = m[step] - m[2 * step];
    Floats sum_b = m[3 * step] + m[4 * step], apart_b = m[3 * step] - m[4 * step];
    y[0] = m[0] + sum_a + sum_b;
    y[1] = A * apart_a + B * apart_b;
    y[2] = AA * sum_a + BB * sum_b;
    y[3] = A * AA * apart_a + B * BB * apart_b + m[5 * step];
}

TARGET INLINE void NAME(column)(Floats q[EDGE], const NUMBER *const rows[EDGE], long at) {
    Floats d[EDGE];
    UNROLL for (int i = 0; i < EDGE; i++) d[i] = NAME(get)(rows[i] + at);
    NAME(to_points)(q, d);
}

/* Writes B'dB of a tile, `step` numbers from point to point; q: of each column B'd. */
TARGET INLINE void NAME(put_tile)(NUMBER *to, long step, Floats q[EDGE][EDGE]) {
    UNROLL for (int i = 0; i < EDGE; i++) {
        Floats row[EDGE], points[EDGE];
        UNROLL for (int j = 0; j < EDGE; j++) row[j] = q[j][i];
        NAME(to_points)(points, row);
        UNROLL for (int j = 0; j < EDGE; j++, to += step) NAME(put)(to, points[j]);
    }
}

/* to: (POINTS, room, in), the transformed tiles of `rows` rows of tiles of one plane. */
TARGET static void NAME(transform)(const NUMBER *plane, NUMBER *to, const NUMBER *zeros, Sizes s,
                                   long first, long rows, long room) {
    long across = (s.x + TILE - 1) / TILE, step = room * s.in;
    for (long r = 0; r < rows; r++, to += across * s.in) {
        const NUMBER *lines[EDGE];
        for (int i = 0; i < EDGE; i++) {
            long y = TILE * (first + r) - 1 + i;
            lines[i] = y < 0 || y >= s.y ? zeros : plane + y * s.x * s.in;
        }
        for (long c = 0; c < s.in; c += LANES) {
            Floats q[EDGE][EDGE];
            memset(q[0], 0, sizeof q[0]);
            NAME(column)(q[1], lines, c);
            for (long t = 0; t < across; t++) {
                long x = TILE * t + 1; /* of the first column that the tile before did not have */
                if (x + TILE <= s.x) {
                    UNROLL for (int j = 0; j < TILE; j++) NAME(column)(q[2 + j], lines, (x + j) * s.in + c);
                } else {
                    memset(q[2], 0, TILE * sizeof q[2]);
                    for (int j = 0; x + j < s.x; j++) NAME(column)(q[2 + j], lines, (x + j) * s.in + c);
                }
                NAME(put_tile)(to + t * s.in + c, step, q);
                memcpy(q[0], q[TILE], 2 * sizeof q[0]);
            }
        }
    }
}

/* sums: (TILES, G, LANES), of the products of one point: tiles of up to three planes, in channels,
 * with weights (depth, in / PAIR, LANES, PAIR), which are `group` numbers from group to group. */
#define PRODUCTS(name, G)                                                                              \
    TARGET static void name(const NUMBER *const planes[3], const NUMBER *weights, long group, Sizes s, \
                            Floats *sums) {                                                            \
        Floats total[TILES][G];                                                                        \
        UNROLL for (int t = 0; t < TILES; t++)                                                         \
            UNROLL for (int g = 0; g < G; g++) total[t][g] = (Floats){0};                              \
        for (long k = 0; k < s.depth; k++, weights += s.in * LANES) {                                  \
            if (!planes[k]) continue;                                                                  \
            for (long c = 0; c < s.in; c += PAIR) {                                                    \
                const NUMBER *of_channel = weights + c * LANES;                                        \
                Floats w[G];                                                                           \
                UNROLL for (int g = 0; g < G; g++) memcpy(w + g, of_channel + g * group, sizeof *w);   \
                UNROLL for (int t = 0; t < TILES; t++) {                                               \
                    float number; /* in bfloat16 a pair */                                             \
                    memcpy(&number, planes[k] + t * s.in + c, sizeof number);                          \
                    UNROLL for (int g = 0; g < G; g++) ADD_PRODUCT(total[t][g], number, w[g]);         \
                }                                                                                      \
            }                                                                                          \
        }                                                                                              \
        UNROLL for (int t = 0; t < TILES; t++)                                                         \
            UNROLL for (int g = 0; g < G; g++) sums[t * G + g] = total[t][g];                          \
    }

#if HALF
#define ADD_PRODUCT(sum, number, w)                                                                    \
    sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(number), (__m512bh)w)
#else
#define ADD_PRODUCT(sum, number, w) sum += number * w
#endif

PRODUCTS(NAME(products_of_one), 1)
PRODUCTS(NAME(products_of_two), 2)

/* Writes A'mA of `count` tiles, of which tile `first` of the plane is the first. */
TARGET INLINE void NAME(write)(const Floats *sums, int groups, NUMBER *plane, Sizes s, long first,
                               long count) {
    long across = (s.x + TILE - 1) / TILE, ty = first / across, tx = first % across;
    long point = TILES * groups;
    for (long t = 0; t < count; t++) {
        long high = s.y - TILE * ty < TILE ? s.y - TILE * ty : TILE;
        long wide = s.x - TILE * tx < TILE ? s.x - TILE * tx : TILE;
        for (int g = 0; g < groups; g++) {
            Floats columns[EDGE][TILE], y[TILE];
            UNROLL for (int j = 0; j < EDGE; j++)
                NAME(from_points)(columns[j], sums + j * point + t * groups + g, EDGE * point);
            NUMBER *to = plane + (ty * s.x + tx) * TILE * s.out + g * LANES;
            for (long i = 0; i < high; i++, to += s.x * s.out) {
                NAME(from_points)(y, columns[0] + i, TILE);
                for (long j = 0; j < wide; j++) NAME(put)(to + j * s.out, y[j]);
            }
        }
        if (++tx == across) tx = 0, ty++;
    }
}

/* The rows of tiles from `first` to `last` of one case; 0: there is no memory. */
TARGET static int NAME(convolve)(const void *maps, void *result, const void *all_weights, Sizes s,
                                 long first, long last) {
    const NUMBER *from = maps, *weights = all_weights;
    long across = (s.x + TILE - 1) / TILE, reach = s.depth / 2, groups = s.out / LANES;
    long group = s.depth * s.in * LANES, point = groups * group;
    long rows = SCRATCH / (s.depth * POINTS * across * s.in * (long)sizeof *from);
    rows = rows < 1 ? 1 : rows > last - first ? last - first : rows;
    long room = (rows * across + TILES - 1) / TILES * TILES, plane = POINTS * room * s.in;
    NUMBER *tiles = aligned_alloc(64, (s.depth * plane * sizeof *tiles + 63) / 64 * 64);
    NUMBER *zeros = calloc(s.x * s.in, sizeof *zeros);
    int done = tiles && zeros;
    Floats sums[POINTS * TILES * 2];
    for (long ty = first; done && ty < last; ty += rows) {
        long count = (last - ty < rows ? last - ty : rows) * across;
        /* plane z + reach is transformed when plane z is computed; tiles hold `depth` planes */
        for (long z = -reach; z < s.z; z++) {
            long next = z + reach;
            if (next < s.z)
                NAME(transform)(from + next * s.y * s.x * s.in, tiles + next % s.depth * plane, zeros, s,
                                ty, count / across, room);
            if (z < 0) continue;
            NUMBER *to = (NUMBER *)result + z * s.y * s.x * s.out;
            for (long t = 0; t < count; t += TILES) {
                long together, some = count - t < TILES ? count - t : TILES;
                for (long g = 0; g < groups; g += together) {
                    together = g + 1 < groups ? 2 : 1;
                    for (long p = 0; p < POINTS; p++) {
                        const NUMBER *planes[3], *of_point = weights + p * point + g * group;
                        for (long k = 0; k < s.depth; k++) {
                            long at = z - reach + k;
                            planes[k] = at < 0 || at >= s.z
                                            ? NULL
                                            : tiles + at % s.depth * plane + (p * room + t) * s.in;
                        }
                        Floats *to_sums = sums + p * TILES * together;
                        if (together == 2) NAME(products_of_two)(planes, of_point, group, s, to_sums);
                        else NAME(products_of_one)(planes, of_point, group, s, to_sums);
                    }
                    if (together == 2) NAME(write)(sums, 2, to + g * LANES, s, ty * across + t, some);
                    else NAME(write)(sums, 1, to + g * LANES, s, ty * across + t, some);
                }
            }
        }
    }
    free(tiles);
    free(zeros);
    return done;
}

#undef Floats
#undef NUMBER
#undef PAIR
#undef PRODUCTS
#undef ADD_PRODUCT
