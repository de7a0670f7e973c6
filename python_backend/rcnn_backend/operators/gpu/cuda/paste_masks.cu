// The edges of masks pasted into a picture: torchvision's paste_masks_in_image and the threshold.
//
// Shapes: n masks of mask_height x mask_width, each with a border of zeros around it; C is the number of pixel columns of
// all masks together. Pixels are numbered column by column. An edge is the number of a pixel at which a mask begins, or
// of the first pixel after the mask.

#include "bilinear.cuh"
#include "half.cuh"

struct Frame {  // the frame of a mask with its border; gpu/rles.py fills these
    int left, top, right, bottom;  // pixels of the picture, the last ones included; they may be outside it
    int first_column;              // this mask's first column inside the picture, among all C
};

__device__ float interpolate(float first, float second, float weight) {
    return __fmaf_rn(first, 1.0f - weight, __fmul_rn(second, weight));
}

// A thread processes one column of a mask, from top to bottom. The kernel runs twice: first only to count the edges.
template <bool WRITES>
__global__ void __launch_bounds__(256) find_edges(
    const Half* masks,    // [n, mask_height, mask_width]
    const Frame* frames,  // [n]
    const int mask_height, const int mask_width,
    const int height, const int width,  // of the picture
    const float thresh,
    int* counts,      // [C], the number of edges in each column
    const int* ends,  // [C], the running sum of `counts`
    int* edges        // ascending
) {
    const Frame frame = frames[blockIdx.y];
    const int left = max(frame.left, 0), top = max(frame.top, 0);
    const int frame_width = max(frame.right - frame.left + 1, 1), frame_height = max(frame.bottom - frame.top + 1, 1);
    const int x = left + blockIdx.x * blockDim.x + threadIdx.x, bottom = min(frame.top + frame_height, height);
    if (x >= min(frame.left + frame_width, width)) return;

    const Half* mask = masks + static_cast<long long>(blockIdx.y) * mask_height * mask_width;
    auto value = [&](int row, int column) {
        const bool is_border = row < 1 || row > mask_height || column < 1 || column > mask_width;
        return is_border ? 0.0f : to_float(mask[(row - 1) * mask_width + column - 1]);
    };
    const float scale_x = __fdiv_rn(mask_width + 2, frame_width), scale_y = __fdiv_rn(mask_height + 2, frame_height);
    const Between columns = source_pixels(x - frame.left, mask_width + 2, scale_x);
    auto row_value = [&](int row) {
        return interpolate(value(row, columns.first), value(row, columns.second), columns.weight);
    };

    const int column = frame.first_column + x - left;
    if (WRITES) edges += ends[column] - counts[column];
    int count = 0, row = -1;
    float above = 0, below = 0;  // the values of the mask above and below a pixel
    bool inside = false;
    for (int y = top; y < bottom; ++y) {
        const Between rows = source_pixels(y - frame.top, mask_height + 2, scale_y);
        if (rows.first != row) {
            row = rows.first;
            above = row_value(row);
            below = row_value(rows.second);
        }
        if (inside != interpolate(above, below, rows.weight) > thresh) {
            if (WRITES) edges[count] = x * height + y;
            inside = !inside;
            ++count;
        }
    }
    if (inside) {
        if (WRITES) edges[count] = x * height + bottom;
        ++count;
    }
    if (!WRITES) counts[column] = count;
}
