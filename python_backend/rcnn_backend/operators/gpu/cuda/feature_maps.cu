// Max pooling, and nearest upsampling plus an optional addend, in channels-last order, bit-identical to torch's.
//
// Shapes: B images, input H x W, output h x w, C channels. A thread computes VECTOR channels of one pixel of the
// output. blockIdx.x is a row of an image, blockIdx.y a part of the row.

#include "half.cuh"
#include "pack.cuh"

constexpr int THREADS = 256;

// Padding is at most half the kernel, as torch requires.
template <typename T, int VECTOR, int KERNEL_HEIGHT, int KERNEL_WIDTH>
__global__ void __launch_bounds__(THREADS) max_pool(
    const Pack<T, VECTOR>* input,  // [B, H, W, C / VECTOR]
    Pack<T, VECTOR>* output,       // [B, h, w, C / VECTOR]
    const int height, const int width, const int output_height, const int output_width,
    const int vectors,  // of a pixel
    const int stride_y, const int stride_x, const int padding_y, const int padding_x
) {
    const int column = blockIdx.y * THREADS + threadIdx.x;
    if (column >= output_width * vectors) return;
    const int x = column / vectors, vector = column % vectors;
    const int image = blockIdx.x / output_height, y = blockIdx.x % output_height;
    const int top = y * stride_y - padding_y, left = x * stride_x - padding_x;
    input += static_cast<long long>(image) * height * width * vectors + vector;

    // A pixel outside is replaced by the nearest one inside, which is in the window too.
    Pack<T, VECTOR> window[KERNEL_HEIGHT][KERNEL_WIDTH];
#pragma unroll
    for (int i = 0; i < KERNEL_HEIGHT; ++i) {
        const long long row = min(max(top + i, 0), height - 1);
#pragma unroll
        for (int j = 0; j < KERNEL_WIDTH; ++j)
            window[i][j] = input[(row * width + min(max(left + j, 0), width - 1)) * vectors];
    }
    Pack<T, VECTOR> result;
#pragma unroll
    for (int channel = 0; channel < VECTOR; ++channel) {
        T largest = window[0][0].values[channel];
#pragma unroll
        for (int i = 0; i < KERNEL_HEIGHT; ++i)
#pragma unroll
            for (int j = 0; j < KERNEL_WIDTH; ++j) {
                const T value = window[i][j].values[channel];
                if (to_float(value) > to_float(largest) || isnan(to_float(value))) largest = value;
            }
        result.values[channel] = largest;
    }
    output[(static_cast<long long>(blockIdx.x) * output_width + x) * vectors + vector] = result;
}

// The pixel that torch's mode "nearest" selects.
__device__ int nearest(int place, float scale, int size) {
    return min(static_cast<int>(floorf(place * scale)), size - 1);
}

template <typename T, int VECTOR>
__global__ void __launch_bounds__(THREADS) upsample(
    const Pack<T, VECTOR>* input,  // [B, H, W, C / VECTOR]
    Pack<T, VECTOR>* output,       // [B, h, w, C / VECTOR]
    const int height, const int width, const int output_height, const int output_width,
    const int vectors,                         // of a pixel
    const float scale_y, const float scale_x,  // H / h and W / w
    const Pack<T, VECTOR>* addend              // [B, h, w, C / VECTOR], or null
) {
    const int column = blockIdx.y * THREADS + threadIdx.x;
    if (column >= output_width * vectors) return;
    const int x = column / vectors, vector = column % vectors;
    const long long image = blockIdx.x / output_height;
    const long long row = image * height + nearest(blockIdx.x % output_height, scale_y, height);
    const long long place = (static_cast<long long>(blockIdx.x) * output_width + x) * vectors + vector;
    Pack<T, VECTOR> result = input[(row * width + nearest(x, scale_x, width)) * vectors + vector];
    if (addend) {
        const Pack<T, VECTOR> other = addend[place];
#pragma unroll
        for (int channel = 0; channel < VECTOR; ++channel) {
            const float sum = to_float(result.values[channel]) + to_float(other.values[channel]);
            result.values[channel] = from_float<T>(sum);
        }
    }
    output[place] = result;
}
