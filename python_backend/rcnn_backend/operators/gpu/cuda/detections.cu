// The header's scores and boxes -> detections: torchvision's RoIHeads.postprocess_detections for a batch,
// scaled back to the pictures as sent.
//
// Shapes: B images, R proposals per image (padded), K foreground classes, D detections per image (padded).
// Boxes are (x1, y1, x2, y2). A candidate is a proposal together with a class; its number within the image is r * K + k.
// Among equal scores, the lower number comes first.
//
// Two kernels, in this order:
//   suppress_classes   greedy NMS for one class of one image
//   gather_detections  the best D candidates of all classes of an image

#include "boxes.cuh"

using Order = unsigned long long;  // score, descending, then candidate number
constexpr Order LAST = ~Order(0);
constexpr unsigned ALL_LANES = 0xffffffffu;

struct Thresholds {
    float score, nms, min_box_size, detections_per_img;
};

__device__ float4 clip(float4 box, const float* image_size) {
    const float height = image_size[0], width = image_size[1];
    return {clip(box.x, width), clip(box.y, height), clip(box.z, width), clip(box.w, height)};
}

__device__ Order order_of(float score, unsigned candidate) {
    return static_cast<Order>(descending(score)) << 32 | candidate;
}

// Sorts `count` orders ascending with a bitonic network. The array must have room for the next power of two.
__device__ void sort(Order* orders, int count) {
    int size = 1;
    while (size < count) size *= 2;
    for (int i = count + threadIdx.x; i < size; i += blockDim.x) orders[i] = LAST;
    __syncthreads();
    for (int sorted = 2; sorted <= size; sorted *= 2) {
        for (int distance = sorted / 2; distance > 0; distance /= 2) {
            for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
                const int low = 2 * i - (i & (distance - 1)), high = low + distance;
                const Order a = orders[low], b = orders[high];
                const bool ascending = (low & sorted) == 0;
                if ((a > b) == ascending) {
                    orders[low] = b;
                    orders[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

// Block (k, b) sorts the candidates of class k in image b. Then each kept box in turn removes the boxes that it
// overlaps.
__global__ void __launch_bounds__(256) suppress_classes(
    const float* class_scores,   // [B, R, K]
    const float4* class_boxes,   // [B, R, K]
    const int* num_proposals,    // [B]
    const float* image_sizes,    // [B, 4]: resized height and width, height and width as sent
    const Thresholds* thresholds,  // [B]
    const int rois, const int classes, const int most,  // R, K, D
    const int capacity,          // a power of two, at least R
    Order* kept,                 // [B, K, D], best first
    int* kept_counts             // [B, K]
) {
    extern __shared__ float4 boxes[];                                // [capacity]
    Order* orders = reinterpret_cast<Order*>(boxes + capacity);      // [capacity]
    unsigned* removed = reinterpret_cast<unsigned*>(orders + capacity);  // one bit per candidate
    __shared__ int candidates;
    const int label = blockIdx.x, image = blockIdx.y, lane = threadIdx.x % 32;
    const long long base = static_cast<long long>(image) * rois * classes;
    const Thresholds limits = thresholds[image];
    const float* image_size = image_sizes + 4 * image;
    class_scores += base, class_boxes += base;
    if (threadIdx.x == 0) candidates = 0;
    __syncthreads();

    // 1. Keep candidates with a high enough score and large enough box.
    const int real = min(num_proposals[image], rois);
    for (int roi = threadIdx.x; roi < real; roi += blockDim.x) {
        const unsigned candidate = roi * classes + label;
        const float score = class_scores[candidate];
        if (!(score > limits.score)) continue;
        const float4 box = clip(class_boxes[candidate], image_size);
        if (box.z - box.x >= limits.min_box_size && box.w - box.y >= limits.min_box_size)
            orders[atomicAdd(&candidates, 1)] = order_of(score, candidate);
    }
    __syncthreads();

    // 2. Sort them, best first.
    const int count = candidates, words = (count + 31) / 32;
    sort(orders, count);
    for (int i = threadIdx.x; i < count; i += blockDim.x)
        boxes[i] = clip(class_boxes[static_cast<unsigned>(orders[i])], image_size);
    for (int word = threadIdx.x; word < words; word += blockDim.x)
        removed[word] = word < count / 32 ? 0 : ALL_LANES << (count % 32);  // bits beyond the last candidate are set
    __syncthreads();

    // 3. Suppress greedily. Stop at D kept candidates: one class never has more among the best D.
    const int limit = min(static_cast<int>(limits.detections_per_img), most);
    const long long own = static_cast<long long>(image) * classes + label;
    int total = 0;
    for (int word = 0; total < limit;) {
        unsigned left = 0;
        while (word < words && !(left = ~removed[word])) ++word;
        if (!left) break;
        const int best = 32 * word + __ffs(left) - 1;
        const float4 box = boxes[best];
        const float box_area = area(box);
        if (threadIdx.x == 0) kept[own * most + total] = orders[best];
        ++total;
        __syncthreads();
        for (int i = 32 * word + threadIdx.x; i < 32 * words; i += blockDim.x) {
            const bool gone =
                i == best || (i > best && i < count && overlap(box, box_area, boxes[i], limits.nms));
            const unsigned bits = __ballot_sync(ALL_LANES, gone);
            if (lane == 0) removed[i / 32] |= bits;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) kept_counts[own] = total;
}

// Block b merges the kept candidates of all classes and writes the detections of image b.
__global__ void __launch_bounds__(512) gather_detections(
    const float* class_scores, const float4* class_boxes, const float* image_sizes,
    const Thresholds* thresholds, const Order* kept, const int* kept_counts,
    const int rois, const int classes, const int most,
    const int capacity,   // a power of two, at least the sum of D and the number of threads
    float4* boxes,        // [B, D], pixels of the picture as sent
    float4* detected,     // [B, D], the same boxes in pixels of the resized image
    float* scores,        // [B, D]
    long long* labels,    // [B, D], 1..K
    int* num_detections   // [B]
) {
    extern __shared__ Order orders[];  // [capacity]
    __shared__ int filled, longest;
    const int image = blockIdx.x;
    const long long base = static_cast<long long>(image) * rois * classes;
    const float* image_size = image_sizes + 4 * image;
    class_scores += base, class_boxes += base;
    kept += static_cast<long long>(image) * classes * most;
    kept_counts += static_cast<long long>(image) * classes;
    const int limit = min(static_cast<int>(thresholds[image].detections_per_img), most);
    if (threadIdx.x == 0) filled = longest = 0;
    __syncthreads();
    for (int label = threadIdx.x; label < classes; label += blockDim.x)
        atomicMax(&longest, kept_counts[label]);
    __syncthreads();

    // 1. Collect the best candidate of each class, then the second of each class, and so on. When the array may
    //    overflow, keep only the best so far, and from then on add only candidates better than the last of them.
    const int last = longest * classes;
    Order worst = LAST;
    for (int first = 0; first < last; first += blockDim.x) {
        const int index = first + threadIdx.x, label = index % classes, place = index / classes;
        if (index < last && place < kept_counts[label]) {
            const Order order = kept[static_cast<long long>(label) * most + place];
            if (order < worst) orders[atomicAdd(&filled, 1)] = order;
        }
        __syncthreads();
        const int now = filled;
        __syncthreads();
        if (now + blockDim.x > capacity) {
            sort(orders, now);
            if (threadIdx.x == 0) filled = min(now, limit);
            if (0 < limit && limit <= now) worst = orders[limit - 1];
            __syncthreads();
        }
    }
    const int found = min(filled, limit);
    sort(orders, filled);

    // 2. Scale back and pad.
    const float ratio_y = image_size[2] / image_size[0], ratio_x = image_size[3] / image_size[1];
    for (int i = threadIdx.x; i < most; i += blockDim.x) {
        const long long place = static_cast<long long>(image) * most + i;
        float4 box = {0, 0, 0, 0}, resized = box;
        float score = 0;
        long long label = 0;
        if (i < found) {
            const unsigned candidate = static_cast<unsigned>(orders[i]);
            resized = clip(class_boxes[candidate], image_size);
            box = {resized.x * ratio_x, resized.y * ratio_y, resized.z * ratio_x, resized.w * ratio_y};
            score = class_scores[candidate];
            label = candidate % classes + 1;
        }
        boxes[place] = box;
        detected[place] = resized;
        scores[place] = score;
        labels[place] = label;
    }
    if (threadIdx.x == 0) num_detections[image] = found;
}
