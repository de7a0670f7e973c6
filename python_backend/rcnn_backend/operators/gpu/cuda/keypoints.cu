// A keypoint header's heatmaps -> keypoints: torchvision's heatmaps_to_keypoints.
//
// Shapes: n detections, P keypoints per detection; a heatmap has h x w samples and is resized to H x W pixels, the
// sides of its box (x1, y1, x2, y2), rounded up. Samples are FP32 or FP16; everything else is FP32, computed in the same
// order as in torch's CUDA kernel for bicubic interpolation. The resized heatmap is never written to memory.

#include "half.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr int STRIP_ROWS = 16;           // pixels of a column that one thread computes
constexpr float MAX_SIDE = 65535.0f;     // so that a pixel's number fits in 32 bits, and the loops end for any box
constexpr float CUBIC = -0.75f;          // the coefficient A of the cubic convolution

// A value and its pixel's number. NaN is above all values; among equal values, the first pixel has the largest peak.
using Peak = unsigned long long;

__device__ Peak peak_of(float value, unsigned pixel) {
    const unsigned bits = __float_as_uint(value + 0.0f);  // -0 equals +0
    const unsigned rank = isnan(value) ? ~0u : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<Peak>(rank) << 32 | ~pixel;
}

__device__ float value_of(Peak peak) {
    const unsigned rank = static_cast<unsigned>(peak >> 32);
    return __uint_as_float(rank & 0x80000000u ? rank & 0x7fffffffu : ~rank);
}

__device__ Peak highest_of_warp(Peak peak) {
    for (int lanes = 16; lanes; lanes /= 2) peak = max(peak, __shfl_xor_sync(0xffffffffu, peak, lanes));
    return peak;
}

// The weights at a distance of 0 to 1 samples and of 1 to 2 samples.
__device__ float near_weight(float x) { return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1; }
__device__ float far_weight(float x) { return ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC; }

// The four samples around a pixel, and their weights. Samples beyond the border repeat the last one.
struct Taps {
    int first;
    float weights[4];

    __device__ float sum(const float (&samples)[4]) const {
        return samples[0] * weights[0] + samples[1] * weights[1] + samples[2] * weights[2] + samples[3] * weights[3];
    }
};

__device__ Taps taps_of(int pixel, float scale) {
    const float place = __fmaf_rn(scale, pixel + 0.5f, -0.5f);
    const float before = floorf(place), t = place - before;
    return {static_cast<int>(before) - 1,
            {far_weight(t + 1), near_weight(t), near_weight(1 - t), far_weight(1 - t + 1)}};
}

// Block (i, p) computes keypoint p of detection i.
template <typename T>
__global__ void __launch_bounds__(THREADS) find_keypoints(
    const T* heatmaps,    // [n, P, h, w]
    const float4* boxes,  // [n]
    const int height, const int width,  // h, w
    float* keypoints,     // [n, P, 3]: x and y in the same pixels as the boxes, and 1
    float* scores         // [n, P]
) {
    __shared__ Peak warps[WARPS];
    const long long place = static_cast<long long>(blockIdx.x) * gridDim.y + blockIdx.y;
    const T* heatmap = heatmaps + place * height * width;
    const float4 box = boxes[blockIdx.x];
    const float box_width = fmaxf(box.z - box.x, 1.0f), box_height = fmaxf(box.w - box.y, 1.0f);
    const int columns = static_cast<int>(fminf(ceilf(box_width), MAX_SIDE));
    const int rows = static_cast<int>(fminf(ceilf(box_height), MAX_SIDE));
    const float scale_x = static_cast<float>(width) / columns, scale_y = static_cast<float>(height) / rows;

    // 1. Each thread goes down columns of STRIP_ROWS pixels.
    Peak peak = 0;
    const int strips = (rows + STRIP_ROWS - 1) / STRIP_ROWS;
    for (int strip = threadIdx.x; strip < columns * strips; strip += THREADS) {
        const int x = strip % columns, top = strip / columns * STRIP_ROWS;
        const Taps across = taps_of(x, scale_x);
        float samples[4];  // at this column, of the four rows from `first` on
        int first = -3;    // none
        for (int y = top; y < min(top + STRIP_ROWS, rows); ++y) {
            const Taps down = taps_of(y, scale_y);
            if (first != down.first) {
                first = down.first;
                for (int i = 0; i < 4; ++i) {
                    const T* row = heatmap + static_cast<long long>(max(0, min(first + i, height - 1))) * width;
                    float of_row[4];
                    for (int j = 0; j < 4; ++j)
                        of_row[j] = to_float(row[max(0, min(across.first + j, width - 1))]);
                    samples[i] = across.sum(of_row);
                }
            }
            peak = max(peak, peak_of(down.sum(samples), static_cast<unsigned>(y) * columns + x));
        }
    }

    // 2. Find the highest peak of the block.
    peak = highest_of_warp(peak);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) warps[warp] = peak;
    __syncthreads();
    if (warp) return;
    peak = highest_of_warp(lane < WARPS ? warps[lane] : 0);
    if (lane) return;
    const unsigned pixel = ~static_cast<unsigned>(peak);
    const float x = pixel % columns + 0.5f, y = pixel / columns + 0.5f;
    keypoints[3 * place] = __fadd_rn(__fmul_rn(x, box_width / columns), box.x);
    keypoints[3 * place + 1] = __fadd_rn(__fmul_rn(y, box_height / rows), box.y);
    keypoints[3 * place + 2] = 1;
    scores[place] = value_of(peak);
}
