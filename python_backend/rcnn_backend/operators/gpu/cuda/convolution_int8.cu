// INT8 convolution with bias, residual and ReLU in channels-last order, as a matrix product on tensor cores:
//
//     output = relu(sums * scale + bias + residual * residual_scale),  sums = conv2d(x, weight)
//
// The product has a row for each pixel of the output (B * h * w), a column for each of the K kernels, and R * S * C terms.
// The matrix of pixels is never stored: its elements are copied from x when they are needed ("implicit GEMM", Chetlur
// et al., cuDNN: Efficient Primitives for Deep Learning, 2014). A block computes ROWS x COLUMNS sums. It copies the
// operands in steps of DEPTH terms, several steps ahead of the tensor cores. Needs compute capability 8.0.
//
// C and K are multiples of 16, and all tensors are aligned to 16 bytes. Sums are exact; everything else is rounded to FP32
// after each operation, as in torch.

#include "half.cuh"
#include "pack.cuh"

constexpr int DEPTH = 64;   // terms, which are bytes
constexpr int CHUNK = 16;   // bytes that a thread copies at once
constexpr int CHUNKS = DEPTH / CHUNK;
constexpr int STAGES = 4;   // steps in shared memory
constexpr int PADDING = 8;  // ints after each row of sums in shared memory: avoids bank conflicts
constexpr int VALUES = 4;   // results that a thread computes at once
constexpr int PREFETCHED = 128;  // bytes
constexpr int OUTSIDE = -(1 << 30);

enum Type { NONE, INT8, FP16, FP32 };

struct Geometry {  // engines/convolution_int8_gpu.py fills it
    int batch, height, width, channels;
    int output_height, output_width, kernels;
    int kernel_height, kernel_width;
    int stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
    int residual_type, output_type, relu;
};

using Int8Values = Pack<signed char, VALUES>;
using HalfValues = Pack<Half, VALUES>;

struct Pixel {
    const signed char* image;
    int top, left;  // of its window in the input
};

__device__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copies CHUNK bytes to shared memory in the background, or writes zeros there.
__device__ void copy_chunk(unsigned to, const signed char* from, bool is_inside) {
    const int bytes = is_inside ? CHUNK : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

__device__ void end_step() { asm volatile("cp.async.commit_group;"); }

template <int PENDING> __device__ void wait_for_steps() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING));
}

// Four 8x16 parts of a matrix of bytes; each thread passes the address of one row of a part.
__device__ void load_parts(unsigned (&parts)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(address));
}

// Adds the product of a 16x32 and a 32x8 matrix.
__device__ void multiply_add(int (&sums)[4], const unsigned (&a)[4], unsigned b_low, unsigned b_high) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
}

// Where a chunk of a row of a step is in shared memory. Eight rows that are read together use different banks.
__device__ int place_of(int row, int chunk) { return row * DEPTH + CHUNK * (chunk ^ ((row >> 1) & 3)); }

__device__ int bytes_of(int type) { return type == FP32 ? 4 : type == FP16 ? 2 : 1; }

// VALUES numbers of a type, starting with number ``place``.
__device__ void read_values(float (&values)[VALUES], const void* from, long long place, int type) {
    if (type == FP32) {
        const float4 given = *reinterpret_cast<const float4*>(static_cast<const float*>(from) + place);
        values[0] = given.x, values[1] = given.y, values[2] = given.z, values[3] = given.w;
    } else if (type == FP16) {
        const HalfValues given = *reinterpret_cast<const HalfValues*>(static_cast<const Half*>(from) + place);
#pragma unroll
        for (int i = 0; i < VALUES; ++i) values[i] = to_float(given.values[i]);
    } else {
        const auto given =
            *reinterpret_cast<const Int8Values*>(static_cast<const signed char*>(from) + place);
#pragma unroll
        for (int i = 0; i < VALUES; ++i) values[i] = given.values[i];
    }
}

__device__ void write_values(const float (&values)[VALUES], void* to, long long place, int type) {
    if (type == FP32) {
        *reinterpret_cast<float4*>(static_cast<float*>(to) + place) =
            make_float4(values[0], values[1], values[2], values[3]);
    } else if (type == FP16) {
        HalfValues made;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) made.values[i] = from_float<Half>(values[i]);
        *reinterpret_cast<HalfValues*>(static_cast<Half*>(to) + place) = made;
    } else {
        Int8Values made;
#pragma unroll
        for (int i = 0; i < VALUES; ++i)
            made.values[i] = static_cast<signed char>(max(-128, min(127, __float2int_rn(values[i]))));
        *reinterpret_cast<Int8Values*>(static_cast<signed char*>(to) + place) = made;
    }
}

template <int ROWS, int COLUMNS>
__global__ void __launch_bounds__(2 * ROWS, 256 / ROWS) convolution_int8(
    const signed char* x,          // [B, H, W, C]
    const signed char* weight,     // [K, R, S, C]
    const float* scale,            // [K]
    const float* bias,             // [K], or null
    const void* residual,          // [B, h, w, K], or null
    const float* residual_scale,   // [K], or null
    void* output,                  // [B, h, w, K]
    const Geometry of
) {
    constexpr int THREADS = 2 * ROWS;
    constexpr int COPIED_ROWS = THREADS / CHUNKS;  // at once
    constexpr int STEP_BYTES = (ROWS + COLUMNS) * DEPTH;
    constexpr int TILES = COLUMNS / 16;  // of 16 x 8 sums, beside one another in a warp's 32 x COLUMNS / 2
    extern __shared__ __align__(128) unsigned char shared[];

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int blocks_per_row = (of.kernels + COLUMNS - 1) / COLUMNS;
    const int first_column = blockIdx.x % blocks_per_row * COLUMNS;
    const int first_row = blockIdx.x / blocks_per_row * ROWS;
    const int image_rows = of.output_height * of.output_width, rows = of.batch * image_rows;

    if (of.residual_type != NONE) {
        const int row = first_row + thread / 2, bytes = bytes_of(of.residual_type);
        const char* start = static_cast<const char*>(residual) +
                            (static_cast<long long>(row) * of.kernels + first_column) * bytes;
        const int end = min(COLUMNS, of.kernels - first_column) * bytes;
        for (int byte = thread % 2 * PREFETCHED; row < rows && byte < end; byte += 2 * PREFETCHED)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(start + byte));
    }

    const int own_chunk = thread % CHUNKS, own_row = thread / CHUNKS;
    Pixel pixels[ROWS / COPIED_ROWS];
#pragma unroll
    for (int i = 0; i < ROWS / COPIED_ROWS; ++i) {
        const int row = first_row + own_row + i * COPIED_ROWS;
        const int image = row / image_rows, y = row % image_rows / of.output_width;
        pixels[i].image = x + static_cast<long long>(image) * of.height * of.width * of.channels;
        pixels[i].top = row < rows ? y * of.stride_y - of.padding_y : OUTSIDE;
        pixels[i].left = row % of.output_width * of.stride_x - of.padding_x;
    }

    // The terms that this thread copies next: their number, channel, and place in the window.
    int term = own_chunk * CHUNK, channel = term, window_y = 0, window_x = 0;
    const int terms = of.kernel_height * of.kernel_width * of.channels;
    auto settle = [&]() {
        while (channel >= of.channels) {
            channel -= of.channels;
            if (++window_x == of.kernel_width) window_x = 0, ++window_y;
        }
    };
    settle();
    auto copy_step = [&](int stage) {
        const unsigned operand_a = shared_address(shared + stage * STEP_BYTES);
        const unsigned operand_b = operand_a + ROWS * DEPTH;
        const bool has_terms = term < terms;
#pragma unroll
        for (int i = 0; i < ROWS / COPIED_ROWS; ++i) {
            const int y = pixels[i].top + window_y * of.dilation_y;
            const int column = pixels[i].left + window_x * of.dilation_x;
            const bool is_inside = has_terms && 0 <= y && y < of.height && 0 <= column && column < of.width;
            const long long place = is_inside ? (y * of.width + column) * of.channels + channel : 0;
            const signed char* from = is_inside ? pixels[i].image + place : x;
            copy_chunk(operand_a + place_of(own_row + i * COPIED_ROWS, own_chunk), from, is_inside);
        }
#pragma unroll
        for (int i = 0; i < COLUMNS / COPIED_ROWS; ++i) {
            const int row = own_row + i * COPIED_ROWS, kernel = first_column + row;
            const bool is_inside = has_terms && kernel < of.kernels;
            const signed char* from = is_inside ? weight + static_cast<long long>(kernel) * terms + term : weight;
            copy_chunk(operand_b + place_of(row, own_chunk), from, is_inside);
        }
        term += DEPTH, channel += DEPTH;
        settle();
    };

    const int steps = (terms + DEPTH - 1) / DEPTH;
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) copy_step(step);
        end_step();
    }

    const int warp_row = warp / 2 * 32, warp_column = warp % 2 * (COLUMNS / 2);
    int sums[2][TILES][4] = {};
    for (int step = 0; step < steps; ++step) {
        wait_for_steps<STAGES - 2>();
        __syncthreads();
        const int next = step + STAGES - 1;
        if (next < steps) copy_step(next % STAGES);
        end_step();
        const unsigned operand_a = shared_address(shared + step % STAGES * STEP_BYTES);
        const unsigned operand_b = operand_a + ROWS * DEPTH;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            unsigned a[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i)
                load_parts(a[i], operand_a + place_of(warp_row + 16 * i + lane % 16, 2 * half + lane / 16));
#pragma unroll
            for (int pair = 0; pair < TILES / 2; ++pair) {
                unsigned b[4];  // two tiles, each as terms 0 to 15 and terms 16 to 31
                const int row = warp_column + 16 * pair + lane / 16 * 8 + lane % 8;
                load_parts(b, operand_b + place_of(row, 2 * half + lane / 8 % 2));
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    multiply_add(sums[i][2 * pair], a[i], b[0], b[1]);
                    multiply_add(sums[i][2 * pair + 1], a[i], b[2], b[3]);
                }
            }
        }
    }

    // Through shared memory, each warp gets whole rows of sums.
    constexpr int STRIDE = COLUMNS + PADDING;
    int* staged = reinterpret_cast<int*>(shared);
    wait_for_steps<0>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            int* to = staged + (warp_row + 16 * i + lane / 4) * STRIDE + warp_column + 8 * tile + lane % 4 * 2;
            *reinterpret_cast<int2*>(to) = make_int2(sums[i][tile][0], sums[i][tile][1]);
            *reinterpret_cast<int2*>(to + 8 * STRIDE) = make_int2(sums[i][tile][2], sums[i][tile][3]);
        }
    __syncthreads();

    constexpr int GROUPS = COLUMNS / VALUES, ROWS_AT_ONCE = THREADS / GROUPS;
    const int column = thread % GROUPS * VALUES, kernel = first_column + column;
    if (kernel >= of.kernels) return;
    float scales[VALUES], biases[VALUES] = {}, residual_scales[VALUES];
    read_values(scales, scale, kernel, FP32);
    if (bias) read_values(biases, bias, kernel, FP32);
    if (of.residual_type != NONE) read_values(residual_scales, residual_scale, kernel, FP32);
#pragma unroll 4
    for (int i = 0; i < ROWS / ROWS_AT_ONCE; ++i) {
        const int own = thread / GROUPS + i * ROWS_AT_ONCE, row = first_row + own;
        if (row >= rows) return;
        const long long place = static_cast<long long>(row) * of.kernels + kernel;
        float added[VALUES] = {}, results[VALUES];
        if (of.residual_type != NONE) read_values(added, residual, place, of.residual_type);
        const int4 four = *reinterpret_cast<const int4*>(staged + own * STRIDE + column);
        const int exact[VALUES] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int k = 0; k < VALUES; ++k) {
            float result = __fmul_rn(__int2float_rn(exact[k]), scales[k]);
            if (bias) result = __fadd_rn(result, biases[k]);
            if (of.residual_type != NONE) result = __fadd_rn(result, __fmul_rn(added[k], residual_scales[k]));
            results[k] = of.relu && result < 0.0f ? 0.0f : result;
        }
        write_values(results, output, place, of.output_type);
    }
}
