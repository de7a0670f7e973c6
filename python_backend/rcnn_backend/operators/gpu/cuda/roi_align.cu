// RoIAlign over a feature pyramid: torchvision's MultiScaleRoIAlign, aligned=False.
//
// Shapes: B images, R RoIs per image (padded), C channels, P x Q bins per RoI, S x S samples per bin.
// Boxes are (x1, y1, x2, y2) in pixels of the resized image. Features are FP32 or FP16 in any memory layout,
// sums are FP32, and the output [B, R, C, P, Q] has the features' type. RoIs beyond num_proposals are zero.
//
// A bin is a weighted sum of pixels. Each weight is the product of a row weight and a column weight. With two samples in
// each direction, a bin has four rows and four columns, or fewer if samples share pixels.
//
//   pool_planar         a lane computes a column of one bin: for features whose rows are contiguous
//   pool_channels_last  a lane computes 16 bytes of channels: for features whose channels are contiguous
//   pool_adaptive       a thread computes a bin: with as many samples as the RoI has pixels (sampling ratio 0), or
//                       with any number for which the others are not compiled

#include "half.cuh"

constexpr int MAX_LEVELS = 8;
constexpr unsigned ALL_LANES = 0xffffffffu;

struct Level {  // gpu/roi_align.py fills these
    const void* data;
    long long image_stride;  // strides in elements; a level of one image has less than 4 GiB
    int channel_stride, row_stride, column_stride;
    int height, width;
    float scale;  // feature pixels per pixel of the image
};

struct Pyramid {
    Level levels[MAX_LEVELS];
    float canonical_level, canonical_scale;
    float finest, coarsest;  // log2 of the strides
};

// torchvision's LevelMapper, equation 1 of the FPN paper. Boxes without area are pooled from the finest level.
__device__ const Level& level_of(float4 box, const Pyramid& pyramid) {
    const float size = sqrtf(__fmul_rn(box.z - box.x, box.w - box.y));
    const float level = floorf(pyramid.canonical_level + log2f(size / pyramid.canonical_scale) + 1e-6f);
    const float clamped = fminf(fmaxf(level, pyramid.finest), pyramid.coarsest);
    return pyramid.levels[static_cast<int>(clamped - pyramid.finest)];
}

// One side of a RoI in feature pixels, rounded as in torchvision's CUDA roi_align.
struct Side {
    float start, bin;

    __device__ Side(float from, float to, float scale, int bins) {
        start = from * scale;
        bin = fmaxf(to * scale - start, 1.0f) / bins;
    }
    __device__ float position(int index, int sample, int samples) const {
        return __fadd_rn(__fmaf_rn(index, bin, start), (sample + 0.5f) * bin / samples);
    }
};

// The two pixels nearest to a sample, and the weight of the second; first < 0 for a sample outside the feature map.
struct Sample {
    int first, second;
    float weight;
};

__device__ Sample sample_at(float position, int size) {
    if (position < -1.0f || position > size) return {-1, -1, 0};
    if (position <= 0) position = 0;
    const int first = static_cast<int>(position);
    if (first >= size - 1) return {size - 1, size - 1, 0};
    return {first, first + 1, position - first};
}

// A row of features that contributes to a row of bins.
struct Row {
    unsigned offset;  // bytes
    float weight;
};

template <int S> struct Rows {
    int count;
    Row rows[2 * S];

    __device__ void add(unsigned offset, float weight) {
        for (int i = 0; i < count; ++i)
            if (rows[i].offset == offset) {
                rows[i].weight += weight;
                return;
            }
        rows[count++] = {offset, weight};
    }
    __device__ void fill(const Side& side, int bin, int size, unsigned row_bytes) {
        count = 0;
        for (int i = 0; i < S; ++i) {
            const Sample sample = sample_at(side.position(bin, i, S), size);
            if (sample.first < 0) continue;
            add(sample.first * row_bytes, 1 - sample.weight);
            add(sample.second * row_bytes, sample.weight);
        }
    }
};

template <typename V> __device__ void write_as(const char* pooled, char* output, int bytes) {
    for (int i = threadIdx.x; i < bytes / static_cast<int>(sizeof(V)); i += blockDim.x)
        reinterpret_cast<V*>(output)[i] = pooled ? reinterpret_cast<const V*>(pooled)[i] : V{};
}

// Copies `bytes` from shared memory, or zeros if `pooled` is null, to a RoI's output. Both are aligned to `element` bytes.
__device__ void write_pooled(const char* pooled, char* output, int bytes, int element) {
    const unsigned long long address = reinterpret_cast<unsigned long long>(output);
    if ((address | bytes) % 16 == 0) write_as<uint4>(pooled, output, bytes);
    else if (element == 4) write_as<unsigned>(pooled, output, bytes);
    else write_as<unsigned short>(pooled, output, bytes);
}

constexpr int power_of_two(int least) { return least <= 1 ? 1 : 2 * power_of_two((least + 1) / 2); }

// Each lane of a group of N lanes has N values. Sums them over the group; lane i gets the sum of the values i.
template <int N> __device__ float sum_over_group(float (&values)[N], int lane) {
#pragma unroll
    for (int half = N / 2; half > 0; half /= 2) {
        const bool upper = lane & half;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const float kept = upper ? values[i + half] : values[i];
            const float sent = upper ? values[i] : values[i + half];
            values[i] = kept + __shfl_xor_sync(ALL_LANES, sent, half);
        }
    }
    return values[0];
}

template <typename T> __device__ T load(const char* pixel) { return *reinterpret_cast<const T*>(pixel); }

// Sums one column of a row of bins for N channels. All loads are in flight at once.
template <typename T, int COUNT, int S, int N>
__device__ void sum_rows(const Rows<S>& rows, const char* const (&columns)[N], float (&sums)[N]) {
    if constexpr (COUNT > 1)
        if (rows.count < COUNT) return sum_rows<T, COUNT - 1>(rows, columns, sums);
    if (rows.count < COUNT) return;
    T pixels[COUNT][N];
#pragma unroll
    for (int row = 0; row < COUNT; ++row)
#pragma unroll
        for (int i = 0; i < N; ++i) pixels[row][i] = load<T>(columns[i] + rows.rows[row].offset);
#pragma unroll
    for (int row = 0; row < COUNT; ++row)
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] += rows.rows[row].weight * to_float(pixels[row][i]);
}

// Block (r, c, b): `block_channels` channels from c * block_channels on; a warp computes GROUP channels at a time.
template <typename T, int P, int Q, int S>
__global__ void __launch_bounds__(256, 4) pool_planar(
    const __grid_constant__ Pyramid pyramid,
    const float4* proposals,   // [B, R]
    const int* num_proposals,  // [B]
    const int rois, const int channels, const int block_channels,
    T* output                  // [B, R, C, P, Q]
) {
    constexpr int GROUP = power_of_two(2 * S);  // lanes of a bin: one for each column it may sum
    constexpr int GROUPS = 32 / GROUP;
    static_assert(GROUP <= 32, "a bin's columns fit a warp");
    extern __shared__ uint4 shared[];
    T* pooled = reinterpret_cast<T*>(shared);  // [block_channels, P, Q]
    __shared__ Rows<S> rows[P];
    const int roi = blockIdx.x, image = blockIdx.z, first_channel = blockIdx.y * block_channels;
    const int here = min(block_channels, channels - first_channel);
    const long long place = static_cast<long long>(image) * rois + roi;
    char* const roi_output = reinterpret_cast<char*>(output + (place * channels + first_channel) * (P * Q));
    const int bytes = here * P * Q * sizeof(T);
    if (roi >= num_proposals[image]) return write_pooled(nullptr, roi_output, bytes, sizeof(T));

    const float4 box = proposals[place];
    const Level& level = level_of(box, pyramid);
    if (threadIdx.x < P) {
        const Side side(box.y, box.w, level.scale, P);
        rows[threadIdx.x].fill(side, threadIdx.x, level.height, level.row_stride * sizeof(T));
    }
    __syncthreads();

    const Side side(box.x, box.z, level.scale, Q);
    const char* feature = reinterpret_cast<const char*>(
        static_cast<const T*>(level.data) + image * level.image_stride +
        static_cast<long long>(first_channel) * level.channel_stride);
    const unsigned column_bytes = level.column_stride * sizeof(T);
    const unsigned channel_bytes = level.channel_stride * sizeof(T);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, member = lane % GROUP;
    for (int bin_column = lane / GROUP; bin_column - lane / GROUP < Q; bin_column += GROUPS) {
        Sample sample = {-1, -1, 0};
        if (bin_column < Q && member < 2 * S)
            sample = sample_at(side.position(bin_column, member / 2, S), level.width);
        const bool inside = sample.first >= 0;
        const float weight = member % 2 ? sample.weight : 1 - sample.weight;
        const int own_column = member % 2 ? sample.second : sample.first;
        const char* column = feature + (inside ? own_column * column_bytes : 0);
        for (int first = warp * GROUP; first < here; first += blockDim.x / 32 * GROUP) {
            const char* columns[GROUP];
#pragma unroll
            for (int i = 0; i < GROUP; ++i) columns[i] = column + min(first + i, here - 1) * channel_bytes;
            for (int bin_row = 0; bin_row < P; ++bin_row) {
                float sums[GROUP] = {};
                sum_rows<T, 2 * S>(rows[bin_row], columns, sums);
#pragma unroll
                for (int i = 0; i < GROUP; ++i) sums[i] = inside ? sums[i] * weight : 0;
                const float sum = sum_over_group(sums, lane);
                if (bin_column < Q && first + member < here)
                    pooled[((first + member) * P + bin_row) * Q + bin_column] = from_float<T>(sum / (S * S));
            }
        }
    }
    __syncthreads();
    write_pooled(reinterpret_cast<const char*>(pooled), roi_output, bytes, sizeof(T));
}

// 16 bytes of channels.
template <typename T>
struct alignas(16) Vector {
    static constexpr int SIZE = 16 / sizeof(T);
    T values[SIZE];
};

template <int N> __device__ void copy(const float (&from)[N], float (&to)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = from[i];
}

// The weighted sum of one column's rows for a lane's channels.
template <typename T, int COUNT, int N>
__device__ void sum_column(const Row (&rows)[COUNT], const char* column, float (&sums)[N]) {
    Vector<T> pixels[COUNT];
#pragma unroll
    for (int row = 0; row < COUNT; ++row) pixels[row] = load<Vector<T>>(column + rows[row].offset);
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] = rows[0].weight * to_float(pixels[0].values[i]);
#pragma unroll
    for (int row = 1; row < COUNT; ++row)
#pragma unroll
        for (int i = 0; i < N; ++i) sums[i] += rows[row].weight * to_float(pixels[row].values[i]);
}

// Computes one row of bins for a lane's channels. Goes along the feature's columns and sums each of them once; a sample
// combines the sums of the two columns around it. COUNT is the number of summed rows; missing rows have weight 0.
template <typename T, int COUNT, int Q, int S>
__device__ void pool_row(
    const Rows<S>& given, const Sample* columns, const char* feature, unsigned column_bytes, int channel_bins,
    T* pooled
) {
    if constexpr (COUNT > S)
        if (given.count < COUNT)
            return pool_row<T, COUNT - 1, Q, S>(given, columns, feature, column_bytes, channel_bins, pooled);
    constexpr int N = Vector<T>::SIZE;
    Row rows[COUNT];
#pragma unroll
    for (int row = 0; row < COUNT; ++row)
        rows[row] = row < given.count ? given.rows[row] : Row{given.rows[0].offset, 0};
    float first[N] = {}, second[N] = {}, sums[N] = {};
    int first_column = -1, second_column = -1;
#pragma unroll 1
    for (int i = 0; i < Q * S; ++i) {
        const Sample sample = columns[i];
        if (sample.first >= 0 && given.count) {
            if (sample.first != first_column) {
                if (sample.first == second_column) copy(second, first);
                else sum_column<T>(rows, feature + sample.first * column_bytes, first);
                if (sample.second == sample.first) copy(first, second);
                else sum_column<T>(rows, feature + sample.second * column_bytes, second);
                first_column = sample.first;
                second_column = sample.second;
            }
            const float weight = 1 - sample.weight;
#pragma unroll
            for (int k = 0; k < N; ++k)
                sums[k] = __fmaf_rn(sample.weight, second[k], __fmaf_rn(weight, first[k], sums[k]));
        }
        if ((i + 1) % S) continue;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            pooled[k * channel_bins + i / S] = from_float<T>(sums[k] / (S * S));
            sums[k] = 0;
        }
    }
}

// Block (r, c, b): the 32 vectors of channels from 32 c on. A warp computes a row of bins.
template <typename T, int P, int Q, int S>
__global__ void __launch_bounds__(32 * P) pool_channels_last(
    const __grid_constant__ Pyramid pyramid,
    const float4* proposals,   // [B, R]
    const int* num_proposals,  // [B]
    const int rois, const int channels,
    T* output                  // [B, R, C, P, Q]
) {
    constexpr int N = Vector<T>::SIZE;
    constexpr int VECTOR_WORDS = 4 * P * Q;       // for the pooled bins of a vector
    constexpr int LANE_WORDS = VECTOR_WORDS + 1;  // odd: lanes use different banks
    extern __shared__ unsigned words[];           // [32, LANE_WORDS]
    __shared__ Rows<S> rows[P];
    __shared__ Sample columns[Q * S];
    const int roi = blockIdx.x, image = blockIdx.z, first_channel = blockIdx.y * 32 * N;
    const int vectors = min(32, (channels - first_channel) / N);
    const long long place = static_cast<long long>(image) * rois + roi;
    T* const roi_output = output + (place * channels + first_channel) * (P * Q);
    if (roi >= num_proposals[image])
        return write_as<uint4>(nullptr, reinterpret_cast<char*>(roi_output), vectors * VECTOR_WORDS * 4);

    const float4 box = proposals[place];
    const Level& level = level_of(box, pyramid);
    if (threadIdx.x < P) {
        const Side side(box.y, box.w, level.scale, P);
        rows[threadIdx.x].fill(side, threadIdx.x, level.height, level.row_stride * sizeof(T));
    }
    for (int i = threadIdx.x; i < Q * S; i += blockDim.x)
        columns[i] = sample_at(Side(box.x, box.z, level.scale, Q).position(i / S, i % S, S), level.width);
    __syncthreads();

    const int bin_row = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane < vectors) {
        const char* feature = reinterpret_cast<const char*>(
            static_cast<const T*>(level.data) + image * level.image_stride + first_channel + lane * N);
        T* pooled = reinterpret_cast<T*>(words + lane * LANE_WORDS) + bin_row * Q;  // [N, P, Q]
        const unsigned column_bytes = level.column_stride * sizeof(T);
        pool_row<T, 2 * S, Q, S>(rows[bin_row], columns, feature, column_bytes, P * Q, pooled);
    }
    __syncthreads();
    unsigned* const output_words = reinterpret_cast<unsigned*>(roi_output);
    for (int i = threadIdx.x; i < vectors * VECTOR_WORDS; i += blockDim.x)
        output_words[i] = words[i / VECTOR_WORDS * LANE_WORDS + i % VECTOR_WORDS];
}

// A thread computes one bin of one channel.
template <typename T>
__global__ void __launch_bounds__(256) pool_adaptive(
    const __grid_constant__ Pyramid pyramid,
    const float4* proposals,   // [B, R]
    const int* num_proposals,  // [B]
    const int rois, const int channels, const int bin_rows, const int bin_columns,
    const int sampling_ratio,  // 0 or less: one sample per feature pixel, rounded up
    T* output                  // [B, R, C, P, Q]
) {
    const int roi = blockIdx.x, image = blockIdx.z;
    const long long place = static_cast<long long>(image) * rois + roi;
    const int bins = bin_rows * bin_columns, index = blockIdx.y * blockDim.x + threadIdx.x;
    if (index >= channels * bins) return;
    T& result = output[place * channels * bins + index];
    if (roi >= num_proposals[image]) {
        result = from_float<T>(0);
        return;
    }
    const float4 box = proposals[place];
    const Level& level = level_of(box, pyramid);
    const Side vertical(box.y, box.w, level.scale, bin_rows);
    const Side horizontal(box.x, box.z, level.scale, bin_columns);
    auto samples = [&](float bin, int size) {  // at most `size`, so that the loops end for any box
        return sampling_ratio > 0 ? sampling_ratio : min(static_cast<int>(ceilf(bin)), size);
    };
    const int samples_y = samples(vertical.bin, level.height);
    const int samples_x = samples(horizontal.bin, level.width);
    const T* feature = static_cast<const T*>(level.data) + image * level.image_stride +
                       static_cast<long long>(index / bins) * level.channel_stride;
    const int bin_row = index % bins / bin_columns, bin_column = index % bin_columns;
    float sum = 0;
    for (int iy = 0; iy < samples_y; ++iy) {
        const Sample y = sample_at(vertical.position(bin_row, iy, samples_y), level.height);
        if (y.first < 0) continue;
        for (int ix = 0; ix < samples_x; ++ix) {
            const Sample x = sample_at(horizontal.position(bin_column, ix, samples_x), level.width);
            if (x.first < 0) continue;
            auto row_value = [&](int row) {
                const T* pixels = feature + row * level.row_stride;
                const float first = to_float(pixels[x.first * level.column_stride]);
                const float second = to_float(pixels[x.second * level.column_stride]);
                return (1 - x.weight) * first + x.weight * second;
            };
            sum += (1 - y.weight) * row_value(y.first) + y.weight * row_value(y.second);
        }
    }
    result = from_float<T>(sum / max(samples_y * samples_x, 1));
}
