// The RPN's boxes -> proposals: torchvision's RegionProposalNetwork.filter_proposals for a batch.
// The boxes are clipped, small and low-scored ones are dropped, greedy NMS runs within each pyramid level, and the best
// R of all levels are kept.
//
// Shapes: B images; N rows per image, those of one level contiguous, levels ascending; R proposals per
// image (padded). A segment consists of the rows of one level of one image. Boxes are (x1, y1, x2, y2) in pixels.
// Rows need not be sorted by score; among equal scores, the lower row comes first.
//
// Four kernels, in this order:
//   sort_candidates   sorts each segment's candidates, the best first
//   mark_overlaps     marks which candidates of a segment overlap: one bit per pair, 64 candidates per word
//   suppress          one warp processes a segment's candidates, 64 at a time
//   gather_proposals  merges, pads and counts the kept boxes of all segments

#include "boxes.cuh"

using Word = unsigned long long;
constexpr int WORD_BITS = 64;
constexpr int COLUMNS = 6;  // of rpn_boxes: score, x1, y1, x2, y2, level
constexpr unsigned ALL_LANES = 0xffffffffu;

struct Segment {
    int start, end;  // rows
};

// The first row whose level is at least `level`, or, with `after`, above it.
__device__ int find_level(const float* rpn_boxes, int rows, float level, bool after) {
    int low = 0, high = rows;
    while (low < high) {
        const int middle = (low + high) / 2;
        const float there = rpn_boxes[middle * COLUMNS + 5];
        if (there < level || (after && there == level)) low = middle + 1;
        else high = middle;
    }
    return low;
}

constexpr int SORT_ROWS = 128;  // threads in a block of sort_candidates, one per row

// Finds each row's place in its segment by counting the rows that come before it. Rows that are not
// candidates come last and get the score NaN.
__global__ void __launch_bounds__(SORT_ROWS) sort_candidates(
    const float* rpn_boxes,    // [B, N, 6]
    const float* image_sizes,  // [B, 4], of which the first two are the resized height and width
    const int rows,            // N
    const float score_thresh, const float min_box_size,
    float4* boxes,             // [B, N], clipped
    float* scores,             // [B, N]
    Segment* segments          // [B, N], of each row
) {
    __shared__ Word orders[SORT_ROWS];  // score, descending, then row
    __shared__ int first_start, last_end;
    const int image = blockIdx.y;
    const int row = blockIdx.x * SORT_ROWS + threadIdx.x;
    const float image_height = image_sizes[4 * image], image_width = image_sizes[4 * image + 1];
    rpn_boxes += static_cast<long long>(image) * rows * COLUMNS;

    auto read = [&](int index, float4& box, float& score) {
        const float2* values = reinterpret_cast<const float2*>(rpn_boxes + index * COLUMNS);
        const float2 first = values[0], second = values[1], third = values[2];
        box = {clip(first.y, image_width), clip(second.x, image_height),
               clip(second.y, image_width), clip(third.x, image_height)};
        const bool candidate = first.x >= score_thresh && box.z - box.x >= min_box_size &&
                               box.w - box.y >= min_box_size;
        score = candidate ? first.x : __uint_as_float(0x7fffffffu);
    };
    auto order_of = [&](int index, float score) {
        const Word major = isnan(score) ? 0xffffffffu : descending(score);
        return major << 32 | static_cast<unsigned>(index);
    };

    float4 box = {0, 0, 0, 0};
    float score = 0;
    Segment segment = {0, 0};
    Word mine = 0;
    if (row < rows) {
        read(row, box, score);
        mine = order_of(row, score);
        const float level = rpn_boxes[row * COLUMNS + 5];
        // The segment must contain the row even if the levels are not ascending, so that invalid input causes no
        // invalid memory access.
        segment.start = min(find_level(rpn_boxes, rows, level, false), row);
        segment.end = max(find_level(rpn_boxes, rows, level, true), row + 1);
        if (threadIdx.x == 0) first_start = segment.start;
        if (threadIdx.x == SORT_ROWS - 1 || row == rows - 1) last_end = segment.end;
    }
    __syncthreads();

    int before = 0;
    for (int tile = first_start / SORT_ROWS * SORT_ROWS; tile < last_end; tile += SORT_ROWS) {
        const int index = tile + threadIdx.x;
        if (index < rows) {
            float4 other_box;
            float other_score;
            read(index, other_box, other_score);
            orders[threadIdx.x] = order_of(index, other_score);
        }
        __syncthreads();
        const int end = min(segment.end - tile, SORT_ROWS);
#pragma unroll 8
        for (int i = max(segment.start - tile, 0); i < end; ++i) before += orders[i] < mine;
        __syncthreads();
    }
    if (row >= rows) return;
    const long long base = static_cast<long long>(image) * rows;
    boxes[base + segment.start + before] = box;
    scores[base + segment.start + before] = score;
    segments[base + row] = segment;
}

// Each candidate has a row of masks. Bit i of word w says whether it overlaps candidate 64 w + i of its segment.
// The candidate's own word covers only candidates before it; later words cover candidates after it.
__global__ void __launch_bounds__(128) mark_overlaps(
    const float4* boxes, const Segment* segments, const int rows, const float nms_thresh,
    const int words,  // in a row of masks: N / 64 rounded up
    Word* masks       // [B, N, words]; words before a candidate's own are not written
) {
    const int slot = blockIdx.x * blockDim.x + threadIdx.x;
    const int word = blockIdx.y;
    const long long base = static_cast<long long>(blockIdx.z) * rows;
    if (slot >= rows) return;
    const Segment segment = segments[base + slot];
    const int first = segment.start + word * WORD_BITS;
    const int own_word = (slot - segment.start) / WORD_BITS;
    if (first >= segment.end || word < own_word) return;

    const float4 box = boxes[base + slot];
    const float box_area = area(box);
    const int count = min(segment.end - first, WORD_BITS);
    Word bits = 0;
    if (word == own_word) {
        for (int i = 0; first + i < slot; ++i) {
            const float4 other = boxes[base + first + i];
            bits |= static_cast<Word>(overlap(other, area(other), box, nms_thresh)) << i;
        }
    } else {
#pragma unroll 8
        for (int i = 0; i < count; ++i)
            bits |= static_cast<Word>(overlap(box, box_area, boxes[base + first + i], nms_thresh)) << i;
    }
    masks[(base + slot) * words + word] = bits;
}

__device__ Word ballot64(bool low, bool high) {
    return __ballot_sync(ALL_LANES, low) | static_cast<Word>(__ballot_sync(ALL_LANES, high)) << 32;
}

// The two of a word's 64 candidates that belong to a lane: which earlier ones in the word overlap each of them, and
// whether each is a candidate at all.
struct Pair {
    Word low_mask, high_mask;
    bool low, high;
};

__device__ Pair read_pair(
    const Word* masks, const float* scores, Segment segment, int words, int word, int lane
) {
    const int low = segment.start + word * WORD_BITS + lane, high = low + 32;
    Pair pair = {0, 0, false, false};
    // Only bits of earlier candidates are used, whatever the memory contains, so the loop that waits for them always ends.
    const Word earlier = (Word(1) << lane) - 1;
    if (low < segment.end) pair.low_mask = masks[static_cast<long long>(low) * words + word] & earlier;
    if (high < segment.end)
        pair.high_mask = masks[static_cast<long long>(high) * words + word] & (earlier << 32 | 0xffffffffu);
    if (low < segment.end) pair.low = !isnan(scores[low]);
    if (high < segment.end) pair.high = !isnan(scores[high]);
    return pair;
}

// Greedy NMS of one segment by one warp. Returns the number of kept candidates, which may exceed `most` by up to 63.
__device__ int suppress_segment(
    const Word* masks, const float* scores, Segment segment, int words, int most, Word* removed, int* kept
) {
    constexpr int BATCH = 16;  // loads in flight
    const int lane = threadIdx.x, half = lane / 16;
    const int segment_words = (segment.end - segment.start + WORD_BITS - 1) / WORD_BITS;
    for (int word = lane; word < segment_words; word += 32) removed[word] = 0;
    __syncwarp();

    int total = 0;
    Pair pair = read_pair(masks, scores, segment, words, 0, lane);
    for (int word = 0; word < segment_words && total < most; ++word) {
        // 1. Within the word: a candidate is kept when all earlier candidates that overlap it have been removed.
        const Word gone = removed[word];
        Word open = ballot64(pair.low, pair.high) & ~gone, keep = 0;
        while (open) {
            const Word low_bit = Word(1) << lane, high_bit = low_bit << 32;
            keep |= ballot64(
                (open & low_bit) && !(pair.low_mask & (keep | open)),
                (open & high_bit) && !(pair.high_mask & (keep | open)));
            open &= ~(keep | ballot64(pair.low_mask & keep, pair.high_mask & keep));
        }
        // 2. Store the kept ones, in order.
        const int first = segment.start + word * WORD_BITS;
        const Word below = (Word(1) << lane) - 1;
        if (keep >> lane & 1) kept[total + __popcll(keep & below)] = first + lane;
        if (keep >> (lane + 32) & 1)
            kept[total + __popcll(keep & (below << 32 | 0xffffffffu))] = first + lane + 32;
        total += __popcll(keep);
        if (word + 1 == segment_words) break;
        pair = read_pair(masks, scores, segment, words, word + 1, lane);
        // 3. Remove the candidates in later words that they overlap. Each half of the warp handles 32 of the 64
        //    candidates, and each lane handles one later word.
        for (int later = word + 1; later < segment_words; later += 16) {
            const int mine = later + lane % 16;
            unsigned left = static_cast<unsigned>(keep >> (32 * half));
            Word overlapped = 0;
            while (mine < segment_words && left) {
                Word parts[BATCH];
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    const long long slot = first + 32 * half + __ffs(left) - 1;
                    parts[i] = left ? masks[slot * words + mine] : 0;
                    left &= left - 1;
                }
#pragma unroll
                for (int i = 0; i < BATCH; ++i) overlapped |= parts[i];
            }
            __syncwarp();
            overlapped |= __shfl_xor_sync(ALL_LANES, overlapped, 16);
            if (half == 0 && mine < segment_words) removed[mine] |= overlapped;
        }
        __syncwarp();
    }
    return total;
}

// A block is one warp, which handles the segments that start in its 32 rows.
__global__ void __launch_bounds__(32) suppress(
    const Word* masks, const float* scores, const Segment* segments, const int rows, const int words,
    const int most,   // R
    int* kept,        // [B, N]: from a segment's start on, the positions of its kept candidates, best first
    int* kept_counts  // [B, N]: the count at a segment's start, 0 elsewhere
) {
    extern __shared__ Word removed[];  // [words]
    const long long base = static_cast<long long>(blockIdx.y) * rows;
    const int row = blockIdx.x * 32 + threadIdx.x;
    Segment segment = {-1, -1};
    if (row < rows) segment = segments[base + row];
    if (row < rows && segment.start != row) kept_counts[base + row] = 0;
    unsigned starts = __ballot_sync(ALL_LANES, row < rows && segment.start == row);
    for (; starts; starts &= starts - 1) {
        const int lane = __ffs(starts) - 1;
        const Segment mine = {
            __shfl_sync(ALL_LANES, segment.start, lane), __shfl_sync(ALL_LANES, segment.end, lane)};
        const int total = suppress_segment(
            masks + base * words, scores + base, mine, words, most, removed, kept + base + mine.start);
        if (threadIdx.x == 0) kept_counts[base + mine.start] = total;
        __syncwarp();
    }
}

// A thread finds the rank of one kept candidate among those of all levels and writes it, and pads one proposal.
__global__ void __launch_bounds__(128) gather_proposals(
    const float4* boxes, const float* scores, const Segment* segments, const int* kept,
    const int* kept_counts, const int rows, const int most,
    float4* proposals,  // [B, R]
    int* num_proposals  // [B]
) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    const int image = blockIdx.y;
    const long long base = static_cast<long long>(image) * rows;
    boxes += base, scores += base, segments += base, kept += base, kept_counts += base;
    proposals += static_cast<long long>(image) * most;

    int own_start = -1, slot = 0;
    if (index < rows) {
        const int start = segments[index].start;
        if (index - start < kept_counts[start]) {
            own_start = start;
            slot = kept[index];
        }
    }
    const float score = own_start < 0 ? 0 : scores[slot];
    int total = 0, rank = 0;
    for (int start = 0; start < rows; start = segments[start].end) {
        const int count = kept_counts[start];
        total += count;
        if (own_start < 0) continue;
        if (start == own_start) {
            rank += index - start;
            continue;
        }
        int low = 0, high = count;  // how many of that segment come before; among equal scores, those of lower rows
        while (low < high) {
            const int middle = (low + high) / 2;
            const float there = scores[kept[start + middle]];
            if (there > score || (there == score && start < own_start)) low = middle + 1;
            else high = middle;
        }
        rank += low;
    }
    total = min(total, most);
    if (own_start >= 0 && rank < most) proposals[rank] = boxes[slot];
    if (index >= total && index < most) proposals[index] = {0, 0, 0, 0};
    if (index == 0) num_proposals[image] = total;
}
