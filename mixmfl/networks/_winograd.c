/* Convolutions of 3 x 3 and 3 x 3 x 3 by short products, for maps with channels last.
 *
 * A tile Y of 4 x 4 results in a plane follows from 6 x 6 inputs d and 3 x 3 weights g by 36 products
 * in place of 144 (Winograd 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
 * 2016): Y = A'[(G g G') o (B'd B)]A. With points 0, a, -a, b, -b and infinity, and for each of the
 * first five p with n = a^2 b^2 at 0, 2 a^2 (a^2 - b^2) at a and -a, 2 b^2 (b^2 - a^2) at b and -b,
 *
 *     | aabb    0   -aa-bb    0    1  0 |      row of G at p: (1, p, p^2) / n, at infinity (0, 0, 1)
 *     |  0   -abb     -bb     a    1  0 |
 * B' =|  0    abb     -bb    -a    1  0 |      column of A' at p: (1, p, p^2, p^3), at infinity
 *     |  0   -aab     -aa     b    1  0 |      (0, 0, 0, 1)
 *     |  0    aab     -aa    -b    1  0 |
 *     |  0   aabb      0   -aa-bb  0  1 |
 *
 * Of 30 pairs that were tried a = 5/8 and b = 3/2 round least: in bfloat16 four times as much as a usual
 * convolution does, less than half of what 1 and 2 do, the common choice.
 *
 * Products are summed over input channels and, in 3-D, over three planes, before A' is applied: from
 * plane to plane the convolution is as usual. Maps are (cases, z, y, x, in) without gaps and with
 * zeros around them, strides are 1, channels multiples of LANES, 8 with AVX2 and 16 with AVX-512.
 * Weights are (POINTS, out / LANES, depth, in, LANES), in bfloat16 with input channels in pairs,
 * (..., in / 2, LANES, 2). Transformed tiles and weights have the type of the maps; sums are float32.
 *
 * It is for x86-64 with AVX2, AVX-512, or AVX-512 with bfloat16; elsewhere no kind is there.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TILE = 4, EDGE = TILE + 2, POINTS = EDGE * EDGE };
enum { SCRATCH = 1 << 19 }; /* bytes of transformed tiles: half of a core's cache */

typedef struct {
    long cases, z, y, x, in, out, depth; /* depth: planes of the kernel, 1 or 3 */
} Sizes;

/* Kinds of processors; the first two multiply float32, the last bfloat16. */
enum { AVX2, AVX512, BF16, KINDS };

typedef int Convolve(const void *, void *, const void *, Sizes, long, long);

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#define A 0.625f
#define B 1.5f
#define AA (A * A)
#define BB (B * B)

#define NAME(x) x##_bf16
#define TARGET __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define HALF 1
#define LANES 16
#define TILES 12
#include "_winograd.h"
#undef NAME
#undef TARGET
#undef HALF

#define NAME(x) x##_avx512
#define TARGET __attribute__((target("arch=x86-64-v4")))
#define HALF 0
#include "_winograd.h"
#undef NAME
#undef TARGET
#undef LANES
#undef TILES

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("arch=x86-64-v3")))
#define LANES 8
#define TILES 6
#include "_winograd.h"

static Convolve *const CONVOLVE[KINDS] = {convolve_avx2, convolve_avx512, convolve_bf16};

static int computes(int kind) {
    __builtin_cpu_init();
    if (kind == AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && (kind == AVX512 || __builtin_cpu_supports("avx512bf16"));
}
#else
static Convolve *const CONVOLVE[KINDS] = {0};

static int computes(int kind) { return 0; }
#endif

/* Python's side: addresses and sizes, all as integers; the interpreter's lock is let go. */

static PyObject *py_computes(PyObject *self, PyObject *args) {
    int kind;
    if (!PyArg_ParseTuple(args, "i", &kind)) return NULL;
    return PyBool_FromLong(kind >= 0 && kind < KINDS && computes(kind));
}

static PyObject *py_convolve(PyObject *self, PyObject *args) {
    Py_ssize_t maps, result, weights;
    long first, last;
    Sizes s;
    int kind, done = 1;
    if (!PyArg_ParseTuple(args, "innn(lllllll)ll", &kind, &maps, &result, &weights, &s.cases, &s.z, &s.y,
                          &s.x, &s.in, &s.out, &s.depth, &first, &last))
        return NULL;
    long voxels = s.z * s.y * s.x * (kind == BF16 ? 2 : 4);
    Py_BEGIN_ALLOW_THREADS
    for (long n = 0; done && n < s.cases; n++)
        done = CONVOLVE[kind]((const char *)maps + n * voxels * s.in, (char *)result + n * voxels * s.out,
                              (const void *)weights, s, first, last);
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"computes", py_computes, METH_VARARGS, NULL},
    {"convolve", py_convolve, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_winograd", NULL, -1, METHODS};

PyMODINIT_FUNC PyInit__winograd(void) { return PyModule_Create(&MODULE); }
