// Boxes (x1, y1, x2, y2) and the order of their scores, for nms.cu and detections.cu.

// NaN stays NaN.
__device__ float clip(float value, float highest) {
    return value < 0 ? 0 : value > highest ? highest : value;
}

// Maps scores to numbers in reverse order: the higher the score, the lower the number. -0 equals +0.
__device__ unsigned descending(float score) {
    const unsigned bits = __float_as_uint(score + 0.0f);
    return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

__device__ float area(float4 box) { return __fmul_rn(box.z - box.x, box.w - box.y); }

// IoU(a, b) > threshold, rounded as in torchvision's CUDA nms; a is the box with the higher score. torchvision
// computes the union with a fused multiply-add, so swapping the two boxes may change the last bit.
__device__ bool overlap(float4 a, float area_a, float4 b, float threshold) {
    const float width = fmaxf(fminf(a.z, b.z) - fmaxf(a.x, b.x), 0.0f);
    const float height = fmaxf(fminf(a.w, b.w) - fmaxf(a.y, b.y), 0.0f);
    const float intersection = __fmul_rn(width, height);
    const float joint = __fsub_rn(__fmaf_rn(b.z - b.x, b.w - b.y, area_a), intersection);
    const float limit = threshold * joint;
    if (intersection < 0.999f * limit) return false;  // rounding matters only near the limit
    if (intersection > 1.001f * limit) return true;
    return __fdiv_rn(intersection, joint) > threshold;
}
