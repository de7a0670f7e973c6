// Several numbers that are loaded or stored with one instruction, for feature_maps.cu and best_boxes.cu.

template <typename T, int COUNT> struct alignas(sizeof(T) * COUNT) Pack {
    T values[COUNT];
};
