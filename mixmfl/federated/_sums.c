/* Weighted sums of numbers in half or single precision, in one pass over them.
 *
 * weighted_sums.py says what is computed, checks what it passes, and has the same in torch's
 * operations. Each product is rounded before it is added, so that both give equal bits: this file
 * is compiled without the contraction of a product and a sum into one operation.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

enum { LANES = 8, BLOCK = 4, STEP = LANES * BLOCK };

#define WIDENING __attribute__((target("avx2,f16c")))

WIDENING static inline __m256 get(const void *row, long at, int half) {
    if (!half) return _mm256_loadu_ps((const float *)row + at);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)row + at)));
}

WIDENING static inline float get_one(const void *row, long at, int half) {
    return half ? _cvtsh_ss(((const uint16_t *)row)[at]) : ((const float *)row)[at];
}

/* Rows lie `stride` bytes apart. */
WIDENING static inline void add(float *total, const char *rows, long stride, const float *shares,
                         long count, long numbers, int half) {
    long at = 0;
    for (; at + STEP <= numbers; at += STEP) {
        __m256 sums[BLOCK];
        for (int i = 0; i < BLOCK; i++) sums[i] = _mm256_loadu_ps(total + at + i * LANES);
        for (long row = 0; row < count; row++) {
            __m256 share = _mm256_set1_ps(shares[row]);
            for (int i = 0; i < BLOCK; i++) {
                __m256 numbers_of_row = get(rows + row * stride, at + i * LANES, half);
                sums[i] = _mm256_add_ps(sums[i], _mm256_mul_ps(share, numbers_of_row));
            }
        }
        for (int i = 0; i < BLOCK; i++) _mm256_storeu_ps(total + at + i * LANES, sums[i]);
    }
    for (; at < numbers; at++)
        for (long row = 0; row < count; row++)
            total[at] += shares[row] * get_one(rows + row * stride, at, half);
}

static int is_known(void) { return __builtin_cpu_supports("avx2"); } /* all of these have F16C */
#else
static void add(float *total, const char *rows, long stride, const float *shares, long count,
                long numbers, int half) {}

static int is_known(void) { return 0; }
#endif

static PyObject *py_add(PyObject *self, PyObject *args) {
    Py_ssize_t total, rows, shares;
    long stride, count, numbers;
    int half;
    if (!PyArg_ParseTuple(args, "nnlnllp", &total, &rows, &stride, &shares, &count, &numbers, &half))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    if (half)
        add((float *)total, (const char *)rows, stride, (const float *)shares, count, numbers, 1);
    else
        add((float *)total, (const char *)rows, stride, (const float *)shares, count, numbers, 0);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {{"add", py_add, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_sums", NULL, -1, METHODS};

PyMODINIT_FUNC PyInit__sums(void) {
    if (is_known()) return PyModule_Create(&MODULE);
    PyErr_SetString(PyExc_ImportError, "this part is written for x86-64 processors with AVX2");
    return NULL;
}
