// The RPN head's outputs -> the best anchors of each pyramid level of each image, sorted, with their boxes.
//
// Shapes: B images, L levels of h x w cells with A anchors per cell, k kept anchors per level. Logits [B, h, w, A] and
// deltas [B, h, w, A, 4] are in channels-last order. A logit is encoded in a word, and the words order all anchors of a
// level: NaN comes first, then the largest logit; among equal logits, the one with the lower anchor number. No two words
// of a level are equal.
//
// Three kernels, in this order:
//   count_logits   counts the words of a level that have the same first 11 bits
//   gather_logits  lists the words that share their first bits with the k-th one, or come before it
//   decode_best    one block per level: cuts the list to k or slightly more words, sorts it and decodes the boxes

#include "half.cuh"
#include "pack.cuh"

using Word = unsigned long long;
constexpr int MAX_LEVELS = 8;
constexpr int THREADS = 256, EACH = 8, TILE = THREADS * EACH;  // logits per block in the first two kernels
constexpr int DECODE_THREADS = 1024;
constexpr int MAX_WORDS = 4096;  // how many a block can sort
constexpr int BIN_BITS = 11, BINS = 1 << BIN_BITS, FIRST_SHIFT = 64 - BIN_BITS;
constexpr unsigned ALL_LANES = 0xffffffffu;

struct HeadLevel {  // engines/best_boxes_gpu.py fills these
    const void* logits;         // T [B, n], n = h * w * A
    const void* deltas;         // T [B, n, 4]
    const float* cell_anchors;  // [A, 4]
    int anchors, cell_size;     // n, A
    int width, stride_y, stride_x;
    int kept;         // k, at least 1 and at most n and MAX_WORDS
    int first_tile;   // the level's first among the tiles of an image
    int first_row;    // its first among the rows of rpn_boxes of an image
    int first_word;   // its first among the words of an image
    int unused;
};

struct HeadLevels {
    HeadLevel levels[MAX_LEVELS];
    int count;
    int rows;   // per image: the sum of k
    int words;  // per image: the sum of n
    int unused;
};

__device__ unsigned bits_of(float logit) { return __float_as_uint(logit); }
__device__ unsigned bits_of(Half logit) { return static_cast<unsigned>(logit.bits) << 16; }
template <typename T> constexpr unsigned INFINITE = 0x7f800000u;
template <> constexpr unsigned INFINITE<Half> = 0x7c000000u;

// -0 equals +0.
template <typename T> __device__ Word word_of(T logit, int anchor) {
    constexpr unsigned SIGN = 0x80000000u;
    unsigned bits = bits_of(logit);
    if ((bits & ~SIGN) > INFINITE<T>) bits = 0;
    else if (bits == SIGN) bits = ~SIGN;
    else if (!(bits & SIGN)) bits = ~bits & ~SIGN;
    return static_cast<Word>(bits) << 32 | static_cast<unsigned>(anchor);
}

__device__ int level_of_tile(const HeadLevels& levels, int tile) {
    int index = 0;
    while (index + 1 < levels.count && tile >= levels.levels[index + 1].first_tile) ++index;
    return index;
}

// Reads the words of one thread in a tile; ~0 beyond the level's end.
template <typename T> __device__ void read_tile(const HeadLevel& level, Word (&words)[EACH]) {
    const T* logits = static_cast<const T*>(level.logits) + static_cast<long long>(blockIdx.y) * level.anchors;
    const int first = (blockIdx.x - level.first_tile) * TILE + threadIdx.x;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int anchor = first + i * THREADS;
        words[i] = anchor < level.anchors ? word_of(logits[anchor], anchor) : ~Word(0);
    }
}

struct Cut {
    unsigned bin;     // the one that contains the word of the given rank
    unsigned before;  // words in the bins before it
    unsigned inside;  // words in it
};

// Finds the bin that contains the `rank`-th word, counted from 1. All threads of the block must call it.
template <int BLOCK> __device__ Cut find_cut(const unsigned* bins, unsigned rank) {
    constexpr int BINS_EACH = BINS / BLOCK, WARPS = BLOCK / 32;
    __shared__ unsigned warps[WARPS];
    __shared__ Cut cut;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned counts[BINS_EACH], total = 0;
#pragma unroll
    for (int i = 0; i < BINS_EACH; ++i) total += counts[i] = bins[threadIdx.x * BINS_EACH + i];
    unsigned up_to = total;
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const unsigned other = __shfl_up_sync(ALL_LANES, up_to, lanes);
        if (lane >= lanes) up_to += other;
    }
    if (lane == 31) warps[warp] = up_to;
    __syncthreads();
    unsigned before = up_to - total;
    for (int i = 0; i < warp; ++i) before += warps[i];
#pragma unroll
    for (int i = 0; i < BINS_EACH; ++i) {
        if (before < rank && rank <= before + counts[i])
            cut = {static_cast<unsigned>(threadIdx.x * BINS_EACH + i), before, counts[i]};
        before += counts[i];
    }
    __syncthreads();
    const Cut found = cut;
    __syncthreads();  // the next call overwrites `cut`
    return found;
}

template <typename T>
__global__ void __launch_bounds__(THREADS) count_logits(
    const __grid_constant__ HeadLevels levels,
    unsigned* bins  // [B, L, BINS], initially zero
) {
    __shared__ unsigned counts[BINS];
    const int index = level_of_tile(levels, blockIdx.x);
    const HeadLevel& level = levels.levels[index];
    Word words[EACH];
    read_tile<T>(level, words);
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) counts[bin] = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        if (words[i] != ~Word(0)) atomicAdd(&counts[words[i] >> FIRST_SHIFT], 1u);
    __syncthreads();
    bins += (static_cast<long long>(blockIdx.y) * levels.count + index) * BINS;
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS)
        if (counts[bin]) atomicAdd(&bins[bin], counts[bin]);
}

template <typename T>
__global__ void __launch_bounds__(THREADS) gather_logits(
    const __grid_constant__ HeadLevels levels,
    const unsigned* bins,  // [B, L, BINS]
    unsigned* ends,        // [B, L], initially zero: the number of listed words
    Word* list             // [B, sum of n]: each level's listed words start at its first_word, in any order
) {
    __shared__ unsigned count, start;
    const int index = level_of_tile(levels, blockIdx.x);
    const HeadLevel& level = levels.levels[index];
    const long long segment = static_cast<long long>(blockIdx.y) * levels.count + index;
    Word words[EACH];
    read_tile<T>(level, words);
    if (threadIdx.x == 0) count = 0;
    const Cut cut = find_cut<THREADS>(bins + segment * BINS, level.kept);
    unsigned slots[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        if (words[i] >> FIRST_SHIFT <= cut.bin) slots[i] = atomicAdd(&count, 1u);
    __syncthreads();
    if (threadIdx.x == 0) start = atomicAdd(&ends[segment], count);
    __syncthreads();
    list += static_cast<long long>(blockIdx.y) * levels.words + level.first_word + start;
#pragma unroll
    for (int i = 0; i < EACH; ++i)
        if (words[i] >> FIRST_SHIFT <= cut.bin) list[slots[i]] = words[i];
}

// Sorts `size` words, a power of two, ascending. A step within 64 words involves only one warp.
__device__ void sort_words(Word* words, int size) {
    for (int width = 2; width <= size; width *= 2) {
        for (int gap = width / 2; gap; gap /= 2) {
            for (int i = threadIdx.x; i < size / 2; i += DECODE_THREADS) {
                const int low = 2 * i - (i & (gap - 1));
                const Word first = words[low], second = words[low + gap];
                if ((first > second) == !(low & width)) {
                    words[low] = second;
                    words[low + gap] = first;
                }
            }
            const int next_gap = gap > 1 ? gap / 2 : width;
            if (max(gap, next_gap) > 32) __syncthreads();
            else __syncwarp();
        }
    }
    __syncthreads();
}

struct Decoding {
    float factors[4];  // of dx, dy, dw, dh: 1 / the coder's weights
    float clip;        // upper limit of dw and dh
};

// The centre of a side of a box, and half its length, as in torchvision's BoxCoder.decode_single, rounded after each
// operation.
__device__ void decode_side(
    float low, float high, float offset, float log_size, float clip, float& decoded_low, float& decoded_high
) {
    const float size = __fsub_rn(high, low);
    const float centre = __fadd_rn(__fmul_rn(offset, size), __fadd_rn(low, __fmul_rn(0.5f, size)));
    const float half = __fmul_rn(0.5f, __fmul_rn(expf(log_size > clip ? clip : log_size), size));
    decoded_low = __fsub_rn(centre, half);
    decoded_high = __fadd_rn(centre, half);
}

// Writes objectness (probability), x1, y1, x2, y2 and level.
template <typename T>
__device__ void decode_anchor(const HeadLevel& level, const Decoding& decoding, unsigned anchor, int index, float2* row) {
    const long long place = static_cast<long long>(blockIdx.y) * level.anchors + anchor;
    const float logit = to_float(static_cast<const T*>(level.logits)[place]);
    const Pack<T, 4> deltas = static_cast<const Pack<T, 4>*>(level.deltas)[place];
    const int cell = anchor / level.cell_size;
    const float* corners = level.cell_anchors + 4 * (anchor % level.cell_size);
    const float x = (cell % level.width) * static_cast<float>(level.stride_x);
    const float y = (cell / level.width) * static_cast<float>(level.stride_y);
    float scaled[4], box[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) scaled[i] = __fmul_rn(to_float(deltas.values[i]), decoding.factors[i]);
    decode_side(
        __fadd_rn(x, corners[0]), __fadd_rn(x, corners[2]), scaled[0], scaled[2], decoding.clip, box[0], box[2]);
    decode_side(
        __fadd_rn(y, corners[1]), __fadd_rn(y, corners[3]), scaled[1], scaled[3], decoding.clip, box[1], box[3]);
    row[0] = {__fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-logit))), box[0]};
    row[1] = {box[1], box[2]};
    row[2] = {box[3], static_cast<float>(index)};
}

template <typename T>
__global__ void __launch_bounds__(DECODE_THREADS) decode_best(
    const __grid_constant__ HeadLevels levels, const Decoding decoding,
    const unsigned* bins,  // [B, L, BINS]
    const Word* list,      // [B, sum of n]
    float2* rpn_boxes      // [B, sum of k, 3]
) {
    __shared__ Word words[MAX_WORDS];
    __shared__ unsigned counts[BINS], count;
    const HeadLevel& level = levels.levels[blockIdx.x];
    const unsigned kept = level.kept;
    list += static_cast<long long>(blockIdx.y) * levels.words + level.first_word;
    rpn_boxes += 3 * (static_cast<long long>(blockIdx.y) * levels.rows + level.first_row);

    // 1. Find the words to sort: those up to `last`, compared without their lowest `shift` bits. These are all listed
    //    words, unless there are too many.
    Cut cut = find_cut<DECODE_THREADS>(bins + (blockIdx.y * levels.count + blockIdx.x) * BINS, kept);
    const unsigned listed = cut.before + cut.inside;
    Word last = cut.bin;
    unsigned before = cut.before;
    int shift = FIRST_SHIFT;
    while (before + cut.inside > MAX_WORDS) {
        const int bits = min(shift, BIN_BITS);
        for (int bin = threadIdx.x; bin < BINS; bin += DECODE_THREADS) counts[bin] = 0;
        __syncthreads();
        for (unsigned i = threadIdx.x; i < listed; i += DECODE_THREADS) {
            const Word word = list[i];
            if (word >> shift == last) atomicAdd(&counts[word >> (shift - bits) & ((1u << bits) - 1)], 1u);
        }
        __syncthreads();
        cut = find_cut<DECODE_THREADS>(counts, kept - before);
        last = last << bits | cut.bin;
        before += cut.before;
        shift -= bits;
    }

    // 2. Sort them.
    const int wanted = before + cut.inside;
    int size = 1;
    while (size < wanted) size *= 2;
    if (threadIdx.x == 0) count = 0;
    for (int i = wanted + threadIdx.x; i < size; i += DECODE_THREADS) words[i] = ~Word(0);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < listed; i += DECODE_THREADS) {
        const Word word = list[i];
        if (word >> shift <= last) words[atomicAdd(&count, 1u)] = word;
    }
    __syncthreads();
    sort_words(words, size);

    // 3. Decode the first k.
    for (unsigned i = threadIdx.x; i < kept; i += DECODE_THREADS)
        decode_anchor<T>(level, decoding, static_cast<unsigned>(words[i]), blockIdx.x, rpn_boxes + 3 * i);
}
