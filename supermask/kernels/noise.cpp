// Uniform numbers of the counter-based generator Philox4x64-10, bit for bit those of `masks/random_numbers.py`, which
// takes them from NumPy, word after word on one thread. `build.py` builds it and says what it takes.
//
// Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

using Word = uint64_t;

inline Word multiply(Word a, Word b, Word *high) {
    const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
    *high = static_cast<Word>(product >> 64);
    return static_cast<Word>(product);
}

// The four words of a count: ten rounds, the key raised between them.
inline void draw(Word count, Word stream, Word step, Word key0, Word key1, Word *out) {
    Word a = count, b = stream, c = step, d = 0, high0, high1;
    for (int round = 0; round < 10; ++round) {
        const Word low0 = multiply(0xD2E7470EE14C6C93u, a, &high0), low1 = multiply(0xCA5A826395121157u, c, &high1);
        a = high1 ^ b ^ key0, b = low1, c = high0 ^ d ^ key1, d = low0;
        key0 += 0x9E3779B97F4A7C15u, key1 += 0xBB67AE8584CAA73Bu;
    }
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

inline float in_unit_interval(uint32_t bits) {
    bits = bits >> 9 | 0x3F800000u;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value - (1.0f - 0x1p-24f);
}

}  // namespace

extern "C" void draw_uniform_floats(Word key0, Word key1, Word step, Word stream, int64_t count, float *values,
                                    int64_t threads) {
    const int64_t blocks = (count + 7) / 8;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        Word words[4];
        // The generator counts before it draws.
        draw(static_cast<Word>(block) + 1, stream, step, key0, key1, words);
        const int64_t here = std::min<int64_t>(8, count - 8 * block);
        // Of each word first the lower half, whatever the order of bytes in memory.
        for (int64_t i = 0; i < here; ++i) {
            values[8 * block + i] = in_unit_interval(static_cast<uint32_t>(words[i / 2] >> 32 * (i % 2)));
        }
    }
}
