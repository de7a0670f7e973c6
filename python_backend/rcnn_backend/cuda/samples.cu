// The first elements of each image's part of several tensors. Shapes: B images. A block is a tensor of an image.

constexpr int MAX_TENSORS = 32;
enum Type { FLOAT32, FLOAT16, INT32 };

struct Tensor {  // gpu/samples.py fills these
    const char* data;
    long long image_stride;  // bytes, as stride
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

// elements [B, columns]
__global__ void first_elements(const Table table, int columns, float* elements) {
    const Tensor tensor = table.tensors[blockIdx.x];
    const long long image = blockIdx.y;
    float* out = elements + image * columns + tensor.first;
    for (int index = threadIdx.x; index < tensor.count; index += blockDim.x)
        out[index] = read(tensor.data + image * tensor.image_stride + index * static_cast<long long>(tensor.stride), tensor.type);
}
