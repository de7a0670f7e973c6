// uint8 pictures of any sizes -> the RPN's input: resize, normalise and pad a batch in one pass.
// Shapes: B pictures; H x W the padded batch. A thread computes the three channels of four pixels of one column.

#include "bilinear.cuh"
#include "half.cuh"

constexpr int MAX_PICTURES = 48;  // per launch: kernel parameters are limited to 4 KiB
constexpr int ROWS = 4;

struct Picture {  // gpu/preprocess.py fills these
    const unsigned char* pixels;
    int row_stride, column_stride, channel_stride;  // bytes
    int height, width, resized_height, resized_width;
    float scale_y, scale_x;  // source pixels per resized pixel
    int padding;
};

struct Batch {
    Picture pictures[MAX_PICTURES];
    float mean[3], inverse_std[3];  // for values in 0..255
};

template <typename T>
__global__ void __launch_bounds__(256) resize_normalize_pad(
    const __grid_constant__ Batch batch,
    const int height, const int width,
    T* input,           // [B, 3, H, W]
    float* image_sizes  // [B, 4]: resized height and width, height and width as sent
) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int first_y = (blockIdx.y * blockDim.y + threadIdx.y) * ROWS;
    const Picture& picture = batch.pictures[blockIdx.z];
    if (x == 0 && first_y == 0) {
        float* sizes = image_sizes + 4 * blockIdx.z;
        sizes[0] = picture.resized_height;
        sizes[1] = picture.resized_width;
        sizes[2] = picture.height;
        sizes[3] = picture.width;
    }
    if (x >= width) return;

    const Between columns = source_pixels(x, picture.width, picture.scale_x);
    const int left = columns.first * picture.column_stride, right = columns.second * picture.column_stride;
    const long long plane = static_cast<long long>(height) * width;
    T* output = input + 3 * blockIdx.z * plane + static_cast<long long>(first_y) * width + x;
#pragma unroll
    for (int i = 0; i < ROWS; ++i, output += width) {
        const int y = first_y + i;
        if (y >= height) return;
        if (y >= picture.resized_height || x >= picture.resized_width) {
            for (int channel = 0; channel < 3; ++channel) output[channel * plane] = from_float<T>(0);
            continue;
        }
        const Between rows = source_pixels(y, picture.height, picture.scale_y);
        const unsigned char* above = picture.pixels + rows.first * picture.row_stride;
        const unsigned char* below = picture.pixels + rows.second * picture.row_stride;
#pragma unroll
        for (int channel = 0; channel < 3; ++channel) {
            const int offset = channel * picture.channel_stride;
            auto row_value = [&](const unsigned char* row) {
                return (1 - columns.weight) * row[left + offset] + columns.weight * row[right + offset];
            };
            const float value = (1 - rows.weight) * row_value(above) + rows.weight * row_value(below);
            const float normalized = (value - batch.mean[channel]) * batch.inverse_std[channel];
            output[channel * plane] = from_float<T>(normalized);
        }
    }
}
