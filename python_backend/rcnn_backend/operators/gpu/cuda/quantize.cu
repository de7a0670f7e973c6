// FP16 or FP32 numbers -> INT8 numbers: x / scale, rounded to nearest with halves to even, clamped to -128 to 127.
// The memory order does not change. A thread computes VALUES numbers; x must be aligned to 16 bytes, y to 8.

#include "half.cuh"

constexpr int VALUES = 8;

template <typename T> struct alignas(16) Given {
    T values[VALUES];
};

struct alignas(VALUES) Made {
    signed char values[VALUES];
};

__device__ signed char to_int8(float value, float scale) {
    return static_cast<signed char>(max(-128, min(127, __float2int_rn(__fdiv_rn(value, scale)))));
}

template <typename T> __global__ void quantize(const T *x, signed char *y, float scale, long long count) {
    long long first = VALUES * (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (first + VALUES <= count) {
        Given<T> given = *reinterpret_cast<const Given<T> *>(x + first);
        Made made;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            made.values[i] = to_int8(to_float(given.values[i]), scale);
        }
        *reinterpret_cast<Made *>(y + first) = made;
    } else {
        for (long long i = first; i < count; ++i) {
            y[i] = to_int8(to_float(x[i]), scale);
        }
    }
}
