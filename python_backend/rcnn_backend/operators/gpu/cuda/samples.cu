// Samples of several tensors, for each image: the first elements, and the largest magnitude in the middle.
// Shapes: B images.

constexpr int MAX_TENSORS = 32, MAX_WARPS = 32;
enum Type { FLOAT32, FLOAT16, INT32 };

struct Tensor {  // gpu/samples.py fills these
    const void* data;
    long long image_size;   // elements
    long long middle;       // the first element of the middle row, on the last axis but one
    long long middle_size;  // elements; 0 if no largest magnitude is needed
    int last, rows;         // sizes of the last axis and of the one before
    int count, width;       // the number of first elements, and of columns for them; the rest are zero
    int first;              // the tensor's first column in the output
    int type;
};

struct Table {
    Tensor tensors[MAX_TENSORS];
};

__device__ float read(const Tensor& tensor, long long element) {
    if (tensor.type == FLOAT32) return static_cast<const float*>(tensor.data)[element];
    if (tensor.type == INT32) return static_cast<float>(static_cast<const int*>(tensor.data)[element]);
    float single;
    asm("cvt.f32.f16 %0, %1;" : "=f"(single) : "h"(static_cast<const unsigned short*>(tensor.data)[element]));
    return single;
}

// The bits of a magnitude have the same order as the numbers; NaN is above all.
__device__ unsigned magnitude(float value) { return __float_as_uint(value) & 0x7fffffffu; }

__device__ unsigned largest_of_warp(unsigned value) {
    for (int lanes = 16; lanes; lanes /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    return value;
}

// A block processes one tensor of one image, and consists of whole warps. samples [B, columns]
__global__ void take_samples(const Table table, int columns, float* samples) {
    __shared__ unsigned warps[MAX_WARPS];
    const Tensor tensor = table.tensors[blockIdx.x];
    const long long image = blockIdx.y * tensor.image_size;
    float* out = samples + blockIdx.y * static_cast<long long>(columns) + tensor.first;
    for (int index = threadIdx.x; index < tensor.width; index += blockDim.x) {
        out[index] = index < tensor.count ? read(tensor, image + index) : 0.0f;
    }
    if (!tensor.middle_size) return;

    unsigned largest = 0;
    const long long plane = static_cast<long long>(tensor.rows) * tensor.last;
    for (long long index = threadIdx.x; index < tensor.middle_size; index += blockDim.x) {
        const long long element = index / tensor.last * plane + tensor.middle + index % tensor.last;
        largest = max(largest, magnitude(read(tensor, image + element)));
    }
    largest = largest_of_warp(largest);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) warps[warp] = largest;
    __syncthreads();
    if (warp == 0) {
        largest = largest_of_warp(lane < blockDim.x / 32 ? warps[lane] : 0);
        if (lane == 0) out[tensor.width] = __uint_as_float(largest);
    }
}
