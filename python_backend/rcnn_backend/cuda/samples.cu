// Samples of each image's part of several tensors: the first elements, then the largest magnitude.
// Shapes: B images.

constexpr int MAX_TENSORS = 32;
enum Type { FLOAT32, FLOAT16, INT32 };

struct Tensor {  // gpu/samples.py fills these
    const char* data;
    long long image_stride;  // bytes, as stride
    long long size;          // elements of an image; 0: no largest magnitude is wanted
    long long vectors;       // the same in uint4; 0: they do not fit
    int stride, count;
    int first;  // column of the output
    int type;
};

struct Table {
    Tensor tensors[MAX_TENSORS];
};

__device__ float read(const char* at, int type) {
    if (type == FLOAT32) return *reinterpret_cast<const float*>(at);
    if (type == INT32) return static_cast<float>(*reinterpret_cast<const int*>(at));
    float single;
    asm("cvt.f32.f16 %0, %1;" : "=f"(single) : "h"(*reinterpret_cast<const unsigned short*>(at)));
    return single;
}

// A block is a tensor of an image. elements [B, columns]
__global__ void first_elements(const Table table, int columns, float* elements) {
    const Tensor tensor = table.tensors[blockIdx.x];
    const long long image = blockIdx.y;
    float* out = elements + image * columns + tensor.first;
    for (int index = threadIdx.x; index < tensor.count; index += blockDim.x)
        out[index] = read(tensor.data + image * tensor.image_stride + index * static_cast<long long>(tensor.stride), tensor.type);
    if (tensor.size && threadIdx.x == 0) out[tensor.count] = 0;
}

// The float32 bits of a magnitude order like the numbers, NaN above all.
__device__ unsigned magnitude(float value) { return __float_as_uint(value) & 0x7fffffffu; }

__device__ unsigned magnitude(unsigned word, int type) {
    if (type == FLOAT32) return word & 0x7fffffffu;
    if (type == INT32) return magnitude(static_cast<float>(static_cast<int>(word)));
    const unsigned short low = word & 0x7fffu, high = word >> 16 & 0x7fffu, larger = low > high ? low : high;
    return magnitude(read(reinterpret_cast<const char*>(&larger), FLOAT16));
}

// After first_elements. Blocks y of a tensor and z of an image share its elements.
__global__ void largest_magnitudes(const Table table, int columns, float* elements) {
    const Tensor tensor = table.tensors[blockIdx.y];
    if (!tensor.size) return;
    const long long image = blockIdx.z, step = gridDim.x * static_cast<long long>(blockDim.x);
    const long long start = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    const char* data = tensor.data + image * tensor.image_stride;
    unsigned largest = 0;
    for (long long index = start; index < tensor.vectors; index += step) {
        const uint4 vector = reinterpret_cast<const uint4*>(data)[index];
        largest = max(largest, max(magnitude(vector.x, tensor.type), magnitude(vector.y, tensor.type)));
        largest = max(largest, max(magnitude(vector.z, tensor.type), magnitude(vector.w, tensor.type)));
    }
    if (!tensor.vectors)
        for (long long index = start; index < tensor.size; index += step)
            largest = max(largest, magnitude(read(data + index * tensor.stride, tensor.type)));
    for (int lanes = 16; lanes; lanes /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
    if (threadIdx.x % 32 == 0)
        atomicMax(reinterpret_cast<unsigned*>(elements) + image * columns + tensor.first + tensor.count, largest);
}
