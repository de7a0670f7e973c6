// The first elements of each image's part of several tensors. Shapes: B images. A block is an image.

constexpr int MAX_TENSORS = 32;
constexpr int SAMPLES = 4;  // of a tensor, or fewer
enum Type { FLOAT32, FLOAT16, INT32 };

struct Tensor {  // gpu/samples.py fills these
    const char* data;
    long long image_stride;  // bytes, as stride
    int stride, count;
    int first;  // column of the output
    int type;
};

struct Tensors {
    Tensor tensors[MAX_TENSORS];
};

__device__ float read(const char* at, int type) {
    if (type == FLOAT32) return *reinterpret_cast<const float*>(at);
    if (type == INT32) return static_cast<float>(*reinterpret_cast<const int*>(at));
    float single;
    asm("cvt.f32.f16 %0, %1;" : "=f"(single) : "h"(*reinterpret_cast<const unsigned short*>(at)));
    return single;
}

// samples [B, columns]
__global__ void take_samples(const Tensors tensors, int num_tensors, int columns, float* samples) {
    const int index = threadIdx.x / SAMPLES, element = threadIdx.x % SAMPLES;
    if (index >= num_tensors || element >= tensors.tensors[index].count) return;
    const Tensor tensor = tensors.tensors[index];
    const char* at = tensor.data + blockIdx.x * tensor.image_stride + static_cast<long long>(element) * tensor.stride;
    samples[static_cast<long long>(blockIdx.x) * columns + tensor.first + element] = read(at, tensor.type);
}
