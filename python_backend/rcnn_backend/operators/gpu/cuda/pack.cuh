// Several numbers that are loaded or stored with one instruction, for feature_maps.cu, best_boxes.cu and
// convolution_int8.cu.

template <typename T, int COUNT> struct alignas(sizeof(T) * COUNT) Pack {
    T values[COUNT];
};
