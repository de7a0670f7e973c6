// Several numbers that one instruction loads or stores, for feature_maps.cu and best_boxes.cu.

template <typename T, int COUNT> struct alignas(sizeof(T) * COUNT) Pack {
    T values[COUNT];
};
