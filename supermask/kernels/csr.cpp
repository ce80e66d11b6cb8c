// A matrix in compressed sparse rows times samples that lie beside each other, plus a bias for each row. Every weight
// that is kept is multiplied with a block of samples at once; samples that lie apart are laid out a block at a time, in
// memory that stays in the cache. `native.py` builds it and says what it takes.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// Multiply-adds below which a second thread takes longer to begin than it saves (2^16 on the processor measured).
constexpr int64_t WORTH_THREADS = 1 << 17;
constexpr int64_t VECTOR_BYTES = 64;

template <typename Value>
struct Matrix {
    const int32_t *rows, *columns;
    const Value *values, *bias;
    int64_t n_rows, n_columns;
};

template <typename Value, int VECTORS>
void multiply_block(const Matrix<Value> &matrix, const Value *x, int64_t x_step, Value *y, int64_t y_step, int64_t n) {
    typedef Value Vector __attribute__((vector_size(VECTOR_BYTES)));
    constexpr int64_t LANES = VECTOR_BYTES / sizeof(Value);
    for (int64_t row = 0; row < matrix.n_rows; ++row) {
        Vector sums[VECTORS];
        for (int v = 0; v < VECTORS; ++v) sums[v] = Vector{} + matrix.bias[row];
        for (int32_t i = matrix.rows[row]; i < matrix.rows[row + 1]; ++i) {
            const Value *from = x + matrix.columns[i] * x_step;
            for (int v = 0; v < VECTORS; ++v) {
                Vector part;
                std::memcpy(&part, from + v * LANES, sizeof(part));
                sums[v] += matrix.values[i] * part;
            }
        }
        std::memcpy(y + row * y_step, sums, n * sizeof(Value));
    }
}

template <typename Value>
void multiply_one(const Matrix<Value> &matrix, const Value *x, int64_t x_step, Value *y) {
    for (int64_t row = 0; row < matrix.n_rows; ++row) {
        Value sum = matrix.bias[row];
        for (int32_t i = matrix.rows[row]; i < matrix.rows[row + 1]; ++i)
            sum += matrix.values[i] * x[matrix.columns[i] * x_step];
        y[row] = sum;
    }
}

template <typename Value>
void lay_out(const Value *x, int64_t sample_step, int64_t column_step, int64_t n_columns, int64_t n, Value *laid,
             int64_t width) {
    constexpr int64_t TILE = 16;  // columns whose blocks of samples are written together
    for (int64_t begin = 0; begin < n_columns; begin += TILE) {
        const int64_t end = std::min(begin + TILE, n_columns);
        for (int64_t sample = 0; sample < n; ++sample) {
            const Value *from = x + sample * sample_step;
            for (int64_t column = begin; column < end; ++column)
                laid[column * width + sample] = from[column * column_step];
        }
    }
}

template <typename Value>
void multiply(const Matrix<Value> &matrix, const Value *x, int64_t n_groups, int64_t group_step, int64_t column_step,
              int64_t sample_step, int64_t n_samples, Value *y, int64_t threads) {
    constexpr int64_t LANES = VECTOR_BYTES / sizeof(Value);
    if (matrix.rows[matrix.n_rows] * n_groups * n_samples < WORTH_THREADS) threads = 1;
    int64_t width = 4 * LANES;
    while (width > LANES && n_groups * ((n_samples + width - 1) / width) < threads) width /= 2;
    const int64_t n_blocks = (n_samples + width - 1) / width;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < n_groups * n_blocks; ++block) {
        const int64_t group = block / n_blocks, begin = block % n_blocks * width;
        const int64_t n = std::min(width, n_samples - begin);
        const Value *from = x + group * group_step + begin * sample_step;
        Value *to = y + group * matrix.n_rows * n_samples + begin;
        if (n_samples == 1) {
            multiply_one(matrix, from, column_step, to);
            continue;
        }
        const int64_t vectors = n <= LANES ? 1 : n <= 2 * LANES ? 2 : 4;
        int64_t step = column_step;
        if (sample_step != 1 || n < vectors * LANES) {
            static thread_local std::vector<Value> laid;
            step = vectors * LANES;
            if (static_cast<int64_t>(laid.size()) < matrix.n_columns * step) laid.resize(matrix.n_columns * step);
            lay_out(from, sample_step, column_step, matrix.n_columns, n, laid.data(), step);
            from = laid.data();
        }
        if (vectors == 1) multiply_block<Value, 1>(matrix, from, step, to, n_samples, n);
        if (vectors == 2) multiply_block<Value, 2>(matrix, from, step, to, n_samples, n);
        if (vectors == 4) multiply_block<Value, 4>(matrix, from, step, to, n_samples, n);
    }
}

}  // namespace

extern "C" void multiply_rows_of_floats(const int32_t *rows, const int32_t *columns, const float *values,
                                        const float *bias, int64_t n_rows, int64_t n_columns, const float *x,
                                        int64_t n_groups, int64_t group_step, int64_t column_step, int64_t sample_step,
                                        int64_t n_samples, float *y, int64_t threads) {
    multiply<float>({rows, columns, values, bias, n_rows, n_columns}, x, n_groups, group_step, column_step, sample_step,
                    n_samples, y, threads);
}

extern "C" void multiply_rows_of_doubles(const int32_t *rows, const int32_t *columns, const double *values,
                                         const double *bias, int64_t n_rows, int64_t n_columns, const double *x,
                                         int64_t n_groups, int64_t group_step, int64_t column_step, int64_t sample_step,
                                         int64_t n_samples, double *y, int64_t threads) {
    multiply<double>({rows, columns, values, bias, n_rows, n_columns}, x, n_groups, group_step, column_step,
                     sample_step, n_samples, y, threads);
}
