// The sampling positions of torch's bilinear interpolation, for preprocess.cu and paste_masks.cu.

// The two source pixels nearest to a resized pixel, and the weight of the second.
struct Between {
    int first, second;
    float weight;
};

// torch's area_pixel_compute_source_index for bilinear interpolation, without aligned corners.
__device__ Between source_pixels(int resized_index, int size, float scale) {
    const float position = fmaxf(__fmaf_rn(scale, resized_index + 0.5f, -0.5f), 0.0f);
    const int first = min(static_cast<int>(position), size - 1);
    return {first, min(first + 1, size - 1), position - first};
}
