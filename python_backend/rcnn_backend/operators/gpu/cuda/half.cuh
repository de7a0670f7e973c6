// FP16 numbers and their conversion to and from FP32, for the kernels that take both types.

struct Half {
    unsigned short bits;
};

__device__ float to_float(float value) { return value; }
__device__ float to_float(Half value) {
    float single;
    asm("cvt.f32.f16 %0, %1;" : "=f"(single) : "h"(value.bits));
    return single;
}

template <typename T> __device__ T from_float(float value);
template <> __device__ float from_float<float>(float value) { return value; }
template <> __device__ Half from_float<Half>(float value) {
    Half half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(value));
    return half;
}
