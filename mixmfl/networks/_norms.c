/* Instance norm with leaky ReLU, for maps with channels last: each map is read twice, written once.
 *
 * layers.py says what is computed, checks what it passes, and has the same in torch's operations.
 * A map of one case is P voxels of C channels, float32 or bfloat16, without gaps. For voxels x of a
 * channel, with their mean m and variance v,
 *
 *     y = f(w r (x - m) + b),    r = 1 / sqrt(v + eps),    f(z) = z if z > 0 else slope z.
 *
 * All sums are of differences from the first voxel: the squares of bfloat16 numbers whose mean is
 * far from zero would cancel. They run in float32 over 256 rows, then in double.
 *
 * The loops are written for vectors of 16 numbers, which GCC and clang know on every processor. GCC
 * compiles them for AVX-512, AVX2 and the plain instruction set, and the loader picks one.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

enum { LANES = 16, BLOCK = 4, ROW = LANES * BLOCK, FLUSH = 256 };

typedef struct {
    long cases, voxels, channels; /* of the map */
    long first, last;             /* the voxels of each case that this call is about */
} Part;

/* A bfloat16 is the upper half of a float32; rounding is to the nearest, ties to even. */
INLINE Floats widen(Halves half) {
    Words bits = __builtin_convertvector(half, Words) << 16;
    return (Floats)bits;
}

INLINE Halves narrow(Floats value) {
    Words bits = (Words)value;
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Words nan = (Words)(value != value); /* rounding could carry a NaN over into a number */
    return __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), Halves);
}

INLINE Floats get(const void *map, long at, int half) {
    if (half) {
        Halves value;
        memcpy(&value, (const uint16_t *)map + at, sizeof value);
        return widen(value);
    }
    Floats value;
    memcpy(&value, (const float *)map + at, sizeof value);
    return value;
}

INLINE void put(void *map, long at, Floats value, int half) {
    if (half) {
        Halves short_value = narrow(value);
        memcpy((uint16_t *)map + at, &short_value, sizeof short_value);
    } else {
        memcpy((float *)map + at, &value, sizeof value);
    }
}

INLINE float get_one(const void *map, long at, int half) {
    if (!half) return ((const float *)map)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)map)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE void put_one(void *map, long at, float value, int half) {
    uint32_t bits;
    if (!half) {
        ((float *)map)[at] = value;
        return;
    }
    memcpy(&bits, &value, sizeof bits);
    ((uint16_t *)map)[at] =
        value != value ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE Floats choose(Ints mask, Floats yes, Floats no) {
    return (Floats)((mask & (Ints)yes) | (~mask & (Ints)no));
}

/* Rows: as many voxels as fill a multiple of ROW numbers, so that all rows have the same channels in
 * the same places. Where channels do not divide ROW a row is several times as wide. */
INLINE long row_of(long channels) {
    long a = channels, b = ROW;
    while (b) {
        long rest = a % b;
        a = b;
        b = rest;
    }
    return channels / a * ROW;
}

INLINE Floats spread(const float *table, long at, long channels) {
    Floats value;
    for (int i = 0; i < LANES; i++) value[i] = table[(at + i) % channels];
    return value;
}

/* Of a block of a row the first voxel's numbers, from which differences are taken. */
INLINE void first_of(Floats *zero, const void *map, long block, long channels, int half) {
    for (int v = 0; v < BLOCK; v++)
        for (int i = 0; i < LANES; i++)
            zero[v][i] = get_one(map, (block + v * LANES + i) % channels, half);
}

/* Adds a block's float32 sums to those of the channels, in double. */
INLINE void flush(const Floats *block_sums, double *sums, long block, long channels) {
    for (int v = 0; v < BLOCK; v++)
        for (int i = 0; i < LANES; i++)
            sums[(block + v * LANES + i) % channels] += block_sums[v][i];
}

/* sums: (cases, 2, channels) double, of x - x0 and of its square, x0 being the case's first voxel. */
INLINE void sums_of(const void *x, double *sums, Part part, int half) {
    long channels = part.channels, row = row_of(channels);
    for (long n = 0; n < part.cases; n++) {
        const char *map = (const char *)x + n * part.voxels * channels * (half ? 2 : 4);
        double *sum = sums + n * 2 * channels, *square = sum + channels;
        long start = part.first * channels, end = part.last * channels;
        long rows = (end - start) / row;
        memset(sum, 0, 2 * channels * sizeof *sum);
        for (long block = 0; block < row; block += ROW) {
            Floats zero[BLOCK];
            first_of(zero, map, block, channels, half);
            for (long from = 0; from < rows; from += FLUSH) {
                long to = from + FLUSH < rows ? from + FLUSH : rows;
                Floats s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, q0 = {0}, q1 = {0}, q2 = {0}, q3 = {0};
                for (long r = from; r < to; r++) {
                    long at = start + r * row + block;
                    Floats d0 = get(map, at, half) - zero[0];
                    Floats d1 = get(map, at + LANES, half) - zero[1];
                    Floats d2 = get(map, at + 2 * LANES, half) - zero[2];
                    Floats d3 = get(map, at + 3 * LANES, half) - zero[3];
                    s0 += d0, s1 += d1, s2 += d2, s3 += d3;
                    q0 += d0 * d0, q1 += d1 * d1, q2 += d2 * d2, q3 += d3 * d3;
                }
                Floats s[BLOCK] = {s0, s1, s2, s3}, q[BLOCK] = {q0, q1, q2, q3};
                flush(s, sum, block, channels);
                flush(q, square, block, channels);
            }
        }
        for (long at = start + rows * row; at < end; at++) {
            float d = get_one(map, at, half) - get_one(map, at % channels, half);
            sum[at % channels] += d;
            square[at % channels] += d * d;
        }
    }
}

/* y = f(scale x + offset), with tables (cases, channels). */
INLINE void apply_of(const void *x, void *y, const float *scale, const float *offset, float slope,
                     Part part, int half) {
    long channels = part.channels, row = row_of(channels), size = half ? 2 : 4;
    for (long n = 0; n < part.cases; n++) {
        long map = n * part.voxels * channels * size;
        const char *from = (const char *)x + map;
        char *to = (char *)y + map;
        const float *a = scale + n * channels, *b = offset + n * channels;
        long start = part.first * channels, end = part.last * channels;
        long rows = (end - start) / row;
        for (long block = 0; block < row; block += ROW) {
            Floats as[BLOCK], bs[BLOCK];
            for (int v = 0; v < BLOCK; v++) {
                as[v] = spread(a, block + v * LANES, channels);
                bs[v] = spread(b, block + v * LANES, channels);
            }
            for (long r = 0; r < rows; r++) {
                long at = start + r * row + block;
                for (int v = 0; v < BLOCK; v++) {
                    Floats z = as[v] * get(from, at + v * LANES, half) + bs[v];
                    put(to, at + v * LANES, choose(z > 0, z, z * slope), half);
                }
            }
        }
        for (long at = start + rows * row; at < end; at++) {
            float z = a[at % channels] * get_one(from, at, half) + b[at % channels];
            put_one(to, at, z > 0 ? z : z * slope, half);
        }
    }
}

/* With g = f'(z) dy, z = scale x + offset: sums (cases, 2, channels) double, of g and of g (x - x0). */
INLINE void gradient_sums_of(const void *x, const void *dy, double *sums, const float *scale,
                             const float *offset, float slope, Part part, int half) {
    long channels = part.channels, row = row_of(channels), size = half ? 2 : 4;
    for (long n = 0; n < part.cases; n++) {
        long map = n * part.voxels * channels * size;
        const char *from = (const char *)x + map, *above = (const char *)dy + map;
        const float *a = scale + n * channels, *b = offset + n * channels;
        double *sum = sums + n * 2 * channels, *product = sum + channels;
        long start = part.first * channels, end = part.last * channels;
        long rows = (end - start) / row;
        memset(sum, 0, 2 * channels * sizeof *sum);
        for (long block = 0; block < row; block += ROW) {
            Floats as[BLOCK], bs[BLOCK], zero[BLOCK];
            first_of(zero, from, block, channels, half);
            for (int v = 0; v < BLOCK; v++) {
                as[v] = spread(a, block + v * LANES, channels);
                bs[v] = spread(b, block + v * LANES, channels);
            }
            for (long r0 = 0; r0 < rows; r0 += FLUSH) {
                long r1 = r0 + FLUSH < rows ? r0 + FLUSH : rows;
                Floats s[BLOCK] = {{0}}, q[BLOCK] = {{0}};
                for (long r = r0; r < r1; r++) {
                    long at = start + r * row + block;
                    for (int v = 0; v < BLOCK; v++) {
                        Floats value = get(from, at + v * LANES, half);
                        Floats g = get(above, at + v * LANES, half);
                        g = choose(as[v] * value + bs[v] > 0, g, g * slope);
                        s[v] += g;
                        q[v] += g * (value - zero[v]);
                    }
                }
                flush(s, sum, block, channels);
                flush(q, product, block, channels);
            }
        }
        for (long at = start + rows * row; at < end; at++) {
            long c = at % channels;
            float value = get_one(from, at, half), g = get_one(above, at, half);
            g = a[c] * value + b[c] > 0 ? g : g * slope;
            sum[c] += g;
            product[c] += g * (value - get_one(from, c, half));
        }
    }
}

/* dx = scale g + along x + constant, with g as above and tables (cases, channels). */
INLINE void gradient_of(const void *x, const void *dy, void *dx, const float *scale,
                        const float *offset, const float *along, const float *constant, float slope,
                        Part part, int half) {
    long channels = part.channels, row = row_of(channels), size = half ? 2 : 4;
    for (long n = 0; n < part.cases; n++) {
        long map = n * part.voxels * channels * size, table = n * channels;
        const char *from = (const char *)x + map, *above = (const char *)dy + map;
        char *to = (char *)dx + map;
        const float *a = scale + table, *b = offset + table, *k = along + table, *l = constant + table;
        long start = part.first * channels, end = part.last * channels;
        long rows = (end - start) / row;
        for (long block = 0; block < row; block += ROW) {
            Floats as[BLOCK], bs[BLOCK], ks[BLOCK], ls[BLOCK];
            for (int v = 0; v < BLOCK; v++) {
                as[v] = spread(a, block + v * LANES, channels);
                bs[v] = spread(b, block + v * LANES, channels);
                ks[v] = spread(k, block + v * LANES, channels);
                ls[v] = spread(l, block + v * LANES, channels);
            }
            for (long r = 0; r < rows; r++) {
                long at = start + r * row + block;
                for (int v = 0; v < BLOCK; v++) {
                    Floats value = get(from, at + v * LANES, half);
                    Floats g = get(above, at + v * LANES, half);
                    g = choose(as[v] * value + bs[v] > 0, g, g * slope);
                    put(to, at + v * LANES, as[v] * g + ks[v] * value + ls[v], half);
                }
            }
        }
        for (long at = start + rows * row; at < end; at++) {
            long c = at % channels;
            float value = get_one(from, at, half), g = get_one(above, at, half);
            g = a[c] * value + b[c] > 0 ? g : g * slope;
            put_one(to, at, a[c] * g + k[c] * value + l[c], half);
        }
    }
}

/* Each is compiled for both types; the type is known to the compiler. */
EACH_PROCESSOR static void sums(const void *x, double *out, Part part, int half) {
    if (half) sums_of(x, out, part, 1);
    else sums_of(x, out, part, 0);
}

EACH_PROCESSOR static void apply(const void *x, void *y, const float *scale, const float *offset,
                                 float slope, Part part, int half) {
    if (half) apply_of(x, y, scale, offset, slope, part, 1);
    else apply_of(x, y, scale, offset, slope, part, 0);
}

EACH_PROCESSOR static void gradient_sums(const void *x, const void *dy, double *out,
                                         const float *scale, const float *offset, float slope,
                                         Part part, int half) {
    if (half) gradient_sums_of(x, dy, out, scale, offset, slope, part, 1);
    else gradient_sums_of(x, dy, out, scale, offset, slope, part, 0);
}

EACH_PROCESSOR static void gradient(const void *x, const void *dy, void *dx, const float *scale,
                                    const float *offset, const float *along, const float *constant,
                                    float slope, Part part, int half) {
    if (half) gradient_of(x, dy, dx, scale, offset, along, constant, slope, part, 1);
    else gradient_of(x, dy, dx, scale, offset, along, constant, slope, part, 0);
}

/* Python's side: addresses and sizes, all as integers; the interpreter's lock is let go.
 *
 * tables are (6, cases, channels) float32: scale, offset, mean minus x0, r; along, constant. */

#define PART "(lllll)"
#define PARTS &part.cases, &part.voxels, &part.channels, &part.first, &part.last

static PyObject *py_sums(PyObject *self, PyObject *args) {
    Py_ssize_t x, out;
    Part part;
    int half;
    if (!PyArg_ParseTuple(args, "nn" PART "p", &x, &out, PARTS, &half)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    sums((const void *)x, (double *)out, part, half);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_finish(PyObject *self, PyObject *args) {
    Py_ssize_t x, sum_at, weight_at, bias_at, tables;
    Part part;
    double eps;
    int half;
    if (!PyArg_ParseTuple(args, "nnnnn" PART "dp", &x, &sum_at, &weight_at, &bias_at, &tables, PARTS,
                          &eps, &half))
        return NULL;
    const float *weight = (const float *)weight_at, *bias = (const float *)bias_at;
    long count = part.cases * part.channels;
    float *scale = (float *)tables, *offset = scale + count, *means = offset + count;
    float *inverse = means + count;
    for (long n = 0; n < part.cases; n++) {
        const double *sum = (const double *)sum_at + n * 2 * part.channels;
        for (long c = 0; c < part.channels; c++) {
            long at = n * part.channels + c;
            double mean = sum[c] / part.voxels;
            double variance = sum[part.channels + c] / part.voxels - mean * mean;
            double first = get_one((const void *)x, n * part.voxels * part.channels + c, half);
            double r = 1 / sqrt((variance < 0 ? 0 : variance) + eps);
            scale[at] = (float)(weight[c] * r);
            offset[at] = (float)(bias[c] - weight[c] * r * (first + mean));
            means[at] = (float)mean;
            inverse[at] = (float)r;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *py_apply(PyObject *self, PyObject *args) {
    Py_ssize_t x, y, tables;
    Part part;
    float slope;
    int half;
    if (!PyArg_ParseTuple(args, "nnn" PART "fp", &x, &y, &tables, PARTS, &slope, &half)) return NULL;
    const float *scale = (const float *)tables, *offset = scale + part.cases * part.channels;
    Py_BEGIN_ALLOW_THREADS
    apply((const void *)x, (void *)y, scale, offset, slope, part, half);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_gradient_sums(PyObject *self, PyObject *args) {
    Py_ssize_t x, dy, out, tables;
    Part part;
    float slope;
    int half;
    if (!PyArg_ParseTuple(args, "nnnn" PART "fp", &x, &dy, &tables, &out, PARTS, &slope, &half))
        return NULL;
    const float *scale = (const float *)tables, *offset = scale + part.cases * part.channels;
    Py_BEGIN_ALLOW_THREADS
    gradient_sums((const void *)x, (const void *)dy, (double *)out, scale, offset, slope, part, half);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* The gradients of weight and bias, (2, channels), and the tables of the map's gradient:
 * dx = w r (g - mean of g - (x - m) r (mean of g (x - m) r)). */
static PyObject *py_finish_gradient(PyObject *self, PyObject *args) {
    Py_ssize_t x, sum_at, tables, gradients;
    Part part;
    int half;
    if (!PyArg_ParseTuple(args, "nnnn" PART "p", &x, &sum_at, &tables, &gradients, PARTS, &half))
        return NULL;
    long count = part.cases * part.channels;
    const float *scale = (const float *)tables, *means = scale + 2 * count, *inverse = means + count;
    float *along = (float *)tables + 4 * count, *constant = along + count;
    float *weight = (float *)gradients, *bias = weight + part.channels;
    for (long c = 0; c < part.channels; c++) {
        double of_weight = 0, of_bias = 0;
        for (long n = 0; n < part.cases; n++) {
            const double *sum = (const double *)sum_at + n * 2 * part.channels;
            long at = n * part.channels + c;
            double r = inverse[at], product = r * (sum[part.channels + c] - means[at] * sum[c]);
            double first = get_one((const void *)x, n * part.voxels * part.channels + c, half);
            double k = -scale[at] * r * product / part.voxels;
            along[at] = (float)k;
            constant[at] = (float)(-scale[at] * sum[c] / part.voxels - k * (first + means[at]));
            of_weight += product;
            of_bias += sum[c];
        }
        weight[c] = (float)of_weight;
        bias[c] = (float)of_bias;
    }
    Py_RETURN_NONE;
}

static PyObject *py_gradient(PyObject *self, PyObject *args) {
    Py_ssize_t x, dy, dx, tables;
    Part part;
    float slope;
    int half;
    if (!PyArg_ParseTuple(args, "nnnn" PART "fp", &x, &dy, &dx, &tables, PARTS, &slope, &half))
        return NULL;
    long count = part.cases * part.channels;
    const float *scale = (const float *)tables, *offset = scale + count;
    const float *along = scale + 4 * count, *constant = along + count;
    Py_BEGIN_ALLOW_THREADS
    gradient((const void *)x, (const void *)dy, (void *)dx, scale, offset, along, constant, slope,
             part, half);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"sums", py_sums, METH_VARARGS, NULL},
    {"finish", py_finish, METH_VARARGS, NULL},
    {"apply", py_apply, METH_VARARGS, NULL},
    {"gradient_sums", py_gradient_sums, METH_VARARGS, NULL},
    {"finish_gradient", py_finish_gradient, METH_VARARGS, NULL},
    {"gradient", py_gradient, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_norms", NULL, -1, METHODS};

PyMODINIT_FUNC PyInit__norms(void) { return PyModule_Create(&MODULE); }
